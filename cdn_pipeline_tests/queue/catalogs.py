"""What tests of the queue write into a catalog: sightings in, claims, outcomes, and triggers that refuse bad edges."""

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.queue.due import DueJob, Selection, claim
from cdn_pipeline.queue.intake import known_images, record
from cdn_pipeline.queue.leases import Run
from cdn_pipeline.queue.outcomes import NewRendition, Outcome, StoredOriginal, Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import IMAGE_TRANSITIONS, JOB_TRANSITIONS, Stage
from cdn_pipeline.sources.discovery import ImageKey, ImageReference, Sighting, compare
from cdn_pipeline.sources.instagram import SourceUrl

NOW = datetime.now(UTC).replace(microsecond=0)
RUN = Run("run-1", "here:1")
EVERYTHING = Selection(INSTAGRAM, frozenset(Stage))


def source_url(
    name: str = "a", *, picture: str = "A", rank: int = 1000, lives: timedelta | None = timedelta(days=3)
) -> SourceUrl:
    """A URL of this picture that lives so long from now."""
    expires_at = None if lives is None else NOW + lives
    return SourceUrl(f"https://cdn.example/{picture}-{name}.jpg", f"file:{picture}", rank, expires_at)


def reference(
    *urls: SourceUrl,
    image: str = "1",
    source_type: str = "profile_avatar",
    owner: str = "owner",
    shard: str = "00",
    age: timedelta = timedelta(),
) -> ImageReference:
    """A sighting of image number `image`, observed `age` ago."""
    key = ImageKey(source_type, image, "avatar")
    return ImageReference(key, owner, shard, None, urls or (source_url(),), NOW - age)


def see(connection: sa.Connection, *references: ImageReference) -> list[Sighting]:
    """Discovery of these references: compared with what is known, and recorded."""
    known = known_images(connection, [each.key for each in references])
    sightings = [compare(each, known.get(each.key), NOW) for each in references]
    record(connection, INSTAGRAM, sightings)
    return sightings


def take(
    connection: sa.Connection, run: Run = RUN, selection: Selection = EVERYTHING, shards: Sequence[str] = SHARDS
) -> list[DueJob]:
    """All due jobs, claimed and in the stream's order."""
    return sorted(claim(connection, run, selection, shards, batch=1000, total=1000), key=lambda job: job.order)


def take_one(connection: sa.Connection, run: Run = RUN, selection: Selection = EVERYTHING) -> DueJob:
    """The only due job, claimed."""
    (job,) = take(connection, run, selection)
    return job


def rendition(
    size: str = "256",
    content: str = "x",
    *,
    original: str = "A",
    version: int | None = None,
    recipe: Recipe = INSTAGRAM.recipe,
) -> NewRendition:
    """A stored rendition whose path follows from its content."""
    content_hash = hashlib.sha256(f"{size} {content}".encode()).hexdigest()
    return NewRendition(
        size_name=size,
        format=recipe.format,
        width=int(size),
        height=int(size),
        file_size=len(content),
        content_hash=content_hash,
        path=f"/th/ig/owner/avatar/{size}/{content_hash[:16]}.{recipe.format}",
        original_sha256=original,
        recipe=recipe.name,
        recipe_version=recipe.version if version is None else version,
        encoder="encoder",
    )


def both_sizes(content: str = "x", **more: Any) -> tuple[NewRendition, ...]:
    return tuple(rendition(size, content, **more) for size in ("256", "512"))


def original_of(job: DueJob, sha256: str = "A") -> StoredOriginal:
    """The original that the job's best URL gave."""
    return StoredOriginal(sha256, job.identity, job.ranks[0], 10, "jpeg", "image/jpeg", '"etag"', None, 1080, 1080)


def outcome(job: DueJob, verdict: Verdict, stage: Stage = Stage.DOWNLOAD, **more: Any) -> Outcome:
    return replace(Outcome(job.job_id, job.asset_id, job.shard, verdict, stage, job.identity, job.urls[0]), **more)


def published(job: DueJob, content: str = "x", sha256: str = "A") -> Outcome:
    """The outcome of a job that went all the way."""
    return outcome(
        job,
        Verdict.PUBLISHED,
        Stage.PUBLISH,
        original=original_of(job, sha256),
        renditions=both_sizes(content, original=sha256),
        total_ms=100,
    )


def rolled_out(job: DueJob, content: str = "x", sha256: str = "A") -> Outcome:
    """The outcome of a rollout's job, which begins with the stored original."""
    renditions = both_sizes(content, original=sha256, recipe=job.recipe)
    return outcome(job, Verdict.PUBLISHED, Stage.PUBLISH, renditions=renditions)


def advanced(job: DueJob, content: str = "x", sha256: str = "A") -> Outcome:
    """The outcome of a run that encodes and leaves publication to another."""
    done = published(job, content, sha256)
    return replace(done, verdict=Verdict.ADVANCED)


def publish(connection: sa.Connection, content: str = "x", sha256: str = "A", run: Run = RUN) -> DueJob:
    """Claims the only due job and publishes it."""
    job = take_one(connection, run)
    assert settle(connection, run, [published(job, content, sha256)]) == {job.job_id}
    return job


def only(connection: sa.Connection, table: str) -> sa.RowMapping:
    """The only row of a table."""
    return connection.execute(sa.text(f"SELECT * FROM {table}")).mappings().one()


def image(connection: sa.Connection) -> sa.RowMapping:
    return only(connection, "cdn_image_assets")


def jobs(connection: sa.Connection) -> Sequence[sa.RowMapping]:
    return connection.execute(sa.text("SELECT * FROM cdn_image_jobs ORDER BY created_at, id")).mappings().all()


def open_jobs(connection: sa.Connection) -> Sequence[sa.RowMapping]:
    return [job for job in jobs(connection) if job["status"] in ("queued", "processing")]


def renditions(connection: sa.Connection) -> set[tuple[str, str, str]]:
    """(size, path, state) of every rendition."""
    rows = connection.execute(sa.text("SELECT size_name, path, state FROM cdn_image_renditions"))
    return {(row.size_name, row.path, row.state) for row in rows}


def visible(connection: sa.Connection) -> tuple[str | None, str | None]:
    """The paths that the view shows for the only image."""
    row = only(connection, "cdn_image_urls")
    return row["cdn_path_256"], row["cdn_path_512"]


def visible_avif(connection: sa.Connection) -> tuple[str | None, str | None]:
    """The same in AVIF."""
    row = only(connection, "cdn_image_urls")
    return row["cdn_path_256_avif"], row["cdn_path_512_avif"]


def paths(content: str, recipe: Recipe = INSTAGRAM.recipe) -> tuple[str, ...]:
    return tuple(each.path for each in both_sizes(content, recipe=recipe))


def due_now(connection: sa.Connection) -> None:
    """Lets every waiting time pass."""
    connection.execute(sa.text("UPDATE cdn_image_jobs SET next_attempt_at = now() WHERE status = 'queued'"))


def register(connection: sa.Connection, run: Run) -> None:
    """Makes the run look alive for as long as the connection's session lasts."""
    key = uuid.uuid4().int >> 65
    connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": key})
    connection.execute(
        sa.text("INSERT INTO cdn_runs (run_id, lock_key, worker_id) VALUES (:run_id, :key, '')"),
        {"run_id": run.run_id, "key": key},
    )


@contextmanager
def session(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose every statement commits."""
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


def refuse_illegal_transitions(engine: sa.Engine) -> None:
    """Makes Postgres raise at any change of status that `states` does not list."""
    with engine.begin() as connection:
        for table, column, transitions in (
            ("cdn_image_assets", "processing_status", IMAGE_TRANSITIONS),
            ("cdn_image_jobs", "status", JOB_TRANSITIONS),
        ):
            connection.execute(sa.text(_guard(table, column, transitions)))


def _guard(table: str, column: str, transitions: Mapping[Any, frozenset[Any]]) -> str:
    legal = ", ".join(f"('{old}', '{new}')" for old, news in transitions.items() for new in news)
    return f"""
        CREATE FUNCTION guard_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'illegal transition of {table}: % to %', OLD.{column}, NEW.{column};
        END $$;
        CREATE TRIGGER guard BEFORE UPDATE ON {table} FOR EACH ROW
            WHEN (OLD.{column} <> NEW.{column} AND (OLD.{column}::text, NEW.{column}::text) NOT IN ({legal}))
            EXECUTE FUNCTION guard_{table}()
    """
