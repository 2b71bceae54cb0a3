"""The environment and `.env`: complete, and without variables that nobody reads."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from dotenv import dotenv_values

from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, warning
from cdn_pipeline.settings import ConfigurationError, Settings

_OUR_PREFIXES = ("ALERT_", "CATALOG_", "CDN_", "CF_", "DECODO_", "ORIGINALS_", "R2_")
_MISSPELT = 0.9  # likeness from which on a variable without such a prefix is taken for one of ours
_SUGGESTED = 0.6  # difflib's own default


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
        least = _SUGGESTED if name.startswith(_OUR_PREFIXES) else _MISSPELT
        meant = next(iter(get_close_matches(name, ours, n=1, cutoff=least)), None)
        if meant or name.startswith(_OUR_PREFIXES):
            yield name, meant


def _env_file() -> Path:
    return Path(str(Settings.model_config["env_file"]))
