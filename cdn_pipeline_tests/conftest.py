"""Fixtures that every test may ask for."""

from cdn_pipeline_tests.pipelines import catalog, catalog_database, environment, migrated_template, settings
from cdn_pipeline_tests.postgres import empty_database, postgres_server
from cdn_pipeline_tests.world import origin, picture_folder, small_world

__all__ = [
    "catalog",
    "catalog_database",
    "empty_database",
    "environment",
    "migrated_template",
    "origin",
    "picture_folder",
    "postgres_server",
    "settings",
    "small_world",
]
