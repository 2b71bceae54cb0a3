"""Runs of the mirror for tests, and what the catalog and the stores say afterwards."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import uuid4

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS, Collection, RetryPolicy
from cdn_pipeline.engine.mirror import Mirror
from cdn_pipeline.engine.stream import ShardReport
from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings


def retries(*in_run: float) -> RetryPolicy:
    """Retries after these seconds inside a run, then in a quarter of an hour."""
    delays = tuple(timedelta(seconds=delay) for delay in in_run)
    return RetryPolicy(in_run=delays, later=(timedelta(minutes=15),), jitter=0.0)


EVERYTHING = frozenset(Stage)
QUICK = replace(INSTAGRAM, recipe=replace(INSTAGRAM.recipe, effort=0), retry=retries(0.1, 0.1, 0.1))


@contextmanager
def open_mirror(settings: Settings, collection: Collection = QUICK) -> Iterator[Mirror]:
    with Mirror(settings, f"run-{uuid4().hex}", collection) as mirror:
        yield mirror


def reports(
    mirror: Mirror,
    *,
    stages: frozenset[Stage] = EVERYTHING,
    owner_ids: Sequence[str] | None = None,
    limit: int | None = None,
    shards: Sequence[str] = SHARDS,
) -> Iterator[ShardReport]:
    """The finished shards of the mirror's stream."""
    selection = Selection(mirror.collection, stages, tuple(owner_ids) if owner_ids is not None else None)
    with closing(mirror.stream(shards, selection, limit=limit)) as items:  # type: ignore[type-var]
        for item in items:
            if isinstance(item, ShardReport):
                yield item


def run(
    settings: Settings,
    *,
    collection: Collection = QUICK,
    prepare: Callable[[Mirror], object] = lambda mirror: None,
    **selection: Any,
) -> Tally:
    """One whole run: discovery, then the stream; `prepare` may tamper with what the run works with."""
    with open_mirror(settings, collection) as mirror:
        list(mirror.discover(SHARDS))
        prepare(mirror)
        return Tally.total([report.tally for report in reports(mirror, **selection)])


def rows(catalog: sa.Engine, query: str, **parameters: Any) -> list[dict[str, Any]]:
    with catalog.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(query), parameters).mappings()]


def view(catalog: sa.Engine) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The images that have a URL, as the view shows them."""
    found = rows(catalog, "SELECT * FROM cdn_image_urls WHERE cdn_path_256 IS NOT NULL OR cdn_path_512 IS NOT NULL")
    return {(row["source_type"], row["source_id"], row["media_id"]): row for row in found}


def images(catalog: sa.Engine) -> list[dict[str, Any]]:
    return rows(catalog, "SELECT * FROM cdn_image_assets ORDER BY id")


def image(catalog: sa.Engine, source_id: object, source_type: str = "profile_avatar") -> dict[str, Any]:
    query = "SELECT * FROM cdn_image_assets WHERE source_id = :source_id AND source_type = :source_type"
    [row] = rows(catalog, query, source_id=str(source_id), source_type=source_type)
    return row


def jobs(catalog: sa.Engine) -> list[dict[str, Any]]:
    return rows(catalog, "SELECT * FROM cdn_image_jobs ORDER BY created_at, id")


def job_states(catalog: sa.Engine) -> Counter[str]:
    return Counter(job["status"] for job in jobs(catalog))


def renditions(catalog: sa.Engine) -> list[dict[str, Any]]:
    return rows(catalog, "SELECT * FROM cdn_image_renditions ORDER BY id")


def assert_nothing_in_hand(catalog: sa.Engine) -> None:
    """No job is leased, and no image says that somebody works on it."""
    assert [job for job in jobs(catalog) if job["status"] == "processing" or job["lease_until"]] == []
    assert {row["processing_status"] for row in images(catalog)} <= {"pending", "completed", "failed"}


def folder(url: str) -> Path:
    """The folder of a `file://` store."""
    return Path(url2pathname(urlsplit(url).path))


def objects_in(url: str) -> dict[str, bytes]:
    """Everything in a folder store: keys and bytes, manifests left out."""
    root = folder(url)
    files = [path for path in root.rglob("*") if path.is_file() and ".meta" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def make_due(catalog: sa.Engine) -> None:
    """Retries that wait for a later run are due now, and hosts that are left alone may be asked again."""
    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_hosts SET retry_at = now() WHERE opened_at IS NOT NULL"))
        connection.execute(sa.text("UPDATE cdn_image_jobs SET next_attempt_at = now() WHERE status = 'queued'"))
