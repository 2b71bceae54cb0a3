"""The environment and `.env`: complete, and without variables that nobody reads."""

import os
from collections.abc import Iterable, Set
from difflib import get_close_matches
from pathlib import Path

from dotenv import dotenv_values

from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, warning
from cdn_pipeline.settings import ConfigurationError, Settings

_OUR_PREFIXES = ("ALERT_", "CATALOG_", "CDN_", "CF_", "DECODO_", "ORIGINALS_", "R2_")
_SUGGESTED = 0.6  # difflib's own default: a name with our prefix is meant for us, whatever follows
# Likeness from which on another name is taken for one of ours: ADMIN_TOKEN has 0.85 of ADMIN_API_TOKEN, DAGSTER_PG_URL
# 0.79 of DAGSTER_GRAPHQL_URL. For those with a prefix it takes more: AWS_SECRET_ACCESS_KEY has 0.88 of R2's.
_MISSPELT = 0.8
_MISSPELT_PREFIX = 0.9


def look_at_settings(deployment: Deployment) -> Finding:
    """Whether the configuration is whole."""
    file = _env_file()
    try:
        settings = deployment.settings
    except ConfigurationError as error:
        return failed(
            str(error), f"Set what is named in {file} or the environment; .env.example explains each variable."
        )
    stores = "folders" if settings.objects_url.startswith("file:") else settings.objects_url
    catalog = "the embedded Postgres" if settings.embedded_catalog else "CATALOG_DATABASE_URL"
    read = f"{file} and the environment" if file.exists() else f"the environment (there is no {file})"
    return ok(f"read from {read}: catalog in {catalog}, stores in {stores}, URLs under {settings.public_base_url}")


# What the project's own tests and CI read.
_OF_THE_TESTS = {f"CDN_PIPELINE_{name}" for name in ("CELERY", "CHROMIUM", "CORPUS", "PROMTOOL")}


def look_at_variables(_: Deployment) -> Finding:
    """Whether there are variables that look like ours and that nobody reads."""
    file = _env_file()
    names = {*os.environ, *(dotenv_values(file) if file.exists() else ())}
    unknown = dict(misspelt(names))
    if not unknown:
        return ok("every variable that looks like ours is one")
    words = ", ".join(f"{name} (meant: {meant}?)" if meant else name for name, meant in unknown.items())
    return warning(f"nobody reads {words}", "Correct the name, or remove the variable.")


def misspelt(names: Iterable[str]) -> Iterable[tuple[str, str | None]]:
    """Names that look like ours and are not, in order, each with the one that may be meant."""
    ours = {name.upper() for name in Settings.model_fields} | _OF_THE_TESTS
    for name in sorted({name.upper() for name in names} - ours):
        meant = _meant(name, ours)
        if meant or name.startswith(_OUR_PREFIXES):
            yield name, meant


def _meant(name: str, ours: Set[str]) -> str | None:
    if name.startswith(_OUR_PREFIXES):
        return _closest(name, ours, _SUGGESTED)
    prefixed = {each for each in ours if each.startswith(_OUR_PREFIXES)}
    # SECRET_ACCESS_KEY, BASE_URL and such, which are ours without the prefix, are other programs'.
    mistaken = {each for each in prefixed if not each.endswith(f"_{name}")}
    return _closest(name, ours - prefixed, _MISSPELT) or _closest(name, mistaken, _MISSPELT_PREFIX)


def _closest(name: str, ours: Set[str], least: float) -> str | None:
    return next(iter(get_close_matches(name, ours, n=1, cutoff=least)), None)


def _env_file() -> Path:
    return Path(str(Settings.model_config["env_file"]))
