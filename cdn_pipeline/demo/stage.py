"""The demo's stage: the embedded application database and the origin its URLs point at, the same ones every time."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import open_demo_database
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.faults import Fault, Misbehaviour
from cdn_pipeline.demo.pictures import Picture
from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.settings import ConfigurationError, Settings

PROFILES = 44
POSTS_PER_PROFILE = 12
_ORIGIN_PORT = 8765
_SEED = 37  # with it the first and the last shard, which people look at, have profiles
_EVERY_ATTEMPT = 1_000_000  # far more than the life of an origin's process has


@dataclass(frozen=True, slots=True)
class Stage:
    """A running origin and the database whose URLs it serves."""

    database: sa.Engine
    signer: Signer
    origin_url: str

    def now(self) -> datetime:
        """The origin's own time."""
        return datetime.fromisoformat(httpx.get(f"{self.origin_url}/_admin/clock").raise_for_status().json()["now"])

    def advance_clock(self, by: timedelta) -> None:
        """Lets the origin's time pass."""
        body = {"advance_seconds": by.total_seconds()}
        httpx.post(f"{self.origin_url}/_admin/clock", json=body).raise_for_status()

    def fetch_profiles_again(self) -> None:
        """What the application does every few days: every URL comes signed anew."""
        app_database.resign_all(self.database, self.signer, now=self.now())

    def withhold_picture(self) -> str:
        """Has the origin give a login page in place of one picture; returns a URL of that picture.

        It is the same picture every time, and nothing else is wrong with it: the origin of `make dev` is another
        process, which knows nothing of this, so there a retry heals the image.
        """
        url = self._first_good_url()
        order = {"path": urlsplit(url).path, "fault": Fault.HTML_PAGE, "attempts": _EVERY_ATTEMPT}
        httpx.post(f"{self.origin_url}/_admin/misbehave", json=order).raise_for_status()
        return url

    def _first_good_url(self) -> str:
        """Of the latest single-picture post, of the first profile, that the origin's own faults leave alone."""
        drawn = Misbehaviour().drawn
        with self.database.connect() as connection:
            for url in connection.scalars(_POSTS_URLS):
                picture = Picture.at(urlsplit(url).path)
                if picture is not None and "\\" not in url and drawn(picture.path) is None:
                    return str(url)
        raise LookupError("every post of the demo's application database is spoiled")


_POSTS_URLS = sa.text("""
    SELECT display_url FROM posts WHERE display_url IS NOT NULL AND sidecar_children IS NULL
    ORDER BY profile_id, taken_at DESC
""")


def folder(settings: Settings) -> Path:
    """Where the demo keeps its pictures, logs and origin's key."""
    return settings.cdn_pipeline_var_dir / "demo"


def require_embedded(settings: Settings) -> None:
    """The demo must not touch a real deployment.

    Raises:
        ConfigurationError: something of the environment points elsewhere.
    """
    set_variables = [
        name.upper()
        for name in (
            "source_database_url",
            "catalog_database_url",
            "object_store_url",
            "originals_store_url",
            "r2_bucket_name",
            "r2_originals_bucket_name",
            "cdn_base_url",
            "r2_public_base",
        )
        if getattr(settings, name)
    ]
    if set_variables:
        raise ConfigurationError(
            f"the demo runs on the embedded defaults and leaves a real deployment alone: unset "
            f"{', '.join(set_variables)} (environment or .env)"
        )


@contextmanager
def open_stage(settings: Settings) -> Iterator[Stage]:
    """Starts the origin and opens the application database, filled on the first time."""
    secret, port = origin_key(settings)
    origin_url = f"http://127.0.0.1:{port}"
    command = python(
        "-m", "cdn_pipeline.demo.origin", "--port", str(port), "--state-dir", str(folder(settings)), "--secret", secret
    )
    log = folder(settings) / "origin.log"
    with (
        running(command, log, ready_url=f"{origin_url}/_admin/clock"),
        open_demo_database(settings) as database,
    ):
        signer = Signer(origin_url, secret)
        _fill(database, signer)
        yield Stage(database, signer, origin_url)


def _fill(database: sa.Engine, signer: Signer) -> None:
    """Fills the tables if they are empty; moves their URLs if the origin had to take another port."""
    app_database.create_tables(database)
    with database.connect() as connection:
        url = connection.scalar(sa.text("SELECT display_url FROM posts WHERE display_url LIKE 'http://127.%' LIMIT 1"))
    if url is None:
        app_database.populate(database, signer, profiles=PROFILES, posts_per_profile=POSTS_PER_PROFILE, seed=_SEED)
    elif not url.startswith(f"{signer.base_url}/"):
        app_database.resign_all(database, signer)


def origin_key(settings: Settings) -> tuple[str, int]:
    """The secret and port of the origin, kept so that URLs of an earlier demo still work."""
    file = folder(settings) / "origin.json"
    secret, port = secrets.token_hex(16), _ORIGIN_PORT
    if file.exists():
        kept = json.loads(file.read_text())
        secret, port = kept["secret"], kept["port"]
    port = free_port(port)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"secret": secret, "port": port}))
    return secret, port
