"""What is measured while parts are there, away or hanging; and how it is judged."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.observe.health import Health, PartName
from cdn_pipeline.observe.monitor import monitoring
from cdn_pipeline.observe.overview import Overview, look_over
from cdn_pipeline.observe.parts import RUNBOOK, Part, parts, whole
from cdn_pipeline.observe.surroundings import fullest_disk
from cdn_pipeline.observe.thresholds import HEARTBEAT_STALE, NO_WORKERS_ERROR
from cdn_pipeline.observe.vitals import Vitals
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings, project_root
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    both_sizes,
    published,
    reference,
    register,
    see,
    session,
    take,
)
from cdn_pipeline_tests.s3 import S3Server, moto_server  # noqa: F401

NOBODY = "http://127.0.0.1:9"  # the port "discard", which nobody serves


def measure(settings: Settings, catalog: sa.Engine, patience: float = 20.0) -> Vitals:
    with monitoring(settings, catalog) as monitor:
        return monitor.vitals(patience)


def part(vitals: Vitals, name: PartName) -> Part:
    return next(each for each in parts(vitals) if each.name is name)


def with_s3(settings: Settings, server: S3Server, **more: str) -> Settings:
    """The settings with both stores on this server."""
    values: dict[str, Any] = {
        **settings.model_dump(exclude_unset=True),
        "object_store_url": f"s3://{server.new_bucket()}",
        "originals_store_url": f"s3://{server.new_bucket()}",
        "r2_endpoint_url": server.endpoint_url,
        "r2_access_key_id": server.access_key_id,
        "r2_secret_access_key": server.secret_access_key,
        **more,
    }
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]


@contextmanager
def hanging() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take_all() -> None:
            try:
                while True:
                    taken.append(server.accept()[0])
            except OSError:
                pass

        threading.Thread(target=take_all, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for each in taken:
                each.close()


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


# -- all is there --


def test_everything_is_measured_of_a_catalog_that_has_work_behind_it(
    settings: Settings, catalog: sa.Engine, connection: sa.Connection
) -> None:
    register(connection, RUN)
    see(connection, reference(), reference(image="2"))
    settle(connection, RUN, [published(job) for job in take(connection)])
    vitals = measure(settings, catalog)
    assert vitals.catalog.answered
    assert vitals.objects.answered
    assert vitals.originals.answered
    assert vitals.overview is not None
    assert vitals.overview.images.published == 2
    assert vitals.storage is not None
    assert vitals.storage.rendition_objects == 4
    assert vitals.storage.rendition_bytes == 2 * sum(each.file_size for each in both_sizes())
    assert (vitals.storage.original_objects, vitals.storage.original_bytes) == (1, 10)  # both have the same picture
    assert vitals.figures is not None
    assert vitals.figures.jobs.completed == 2
    assert vitals.delivery is None
    assert vitals.traffic is None
    assert vitals.disk is not None
    assert 0 < vitals.disk.free <= vitals.disk.total
    assert vitals.process.resident_bytes > 0
    assert abs(vitals.at - datetime.now(UTC)) < timedelta(minutes=1)
    assert whole(parts(vitals)) is Health.HEALTHY


def test_a_store_on_s3_is_there_although_the_object_that_is_asked_for_is_not(
    settings: Settings, catalog: sa.Engine, moto_server: S3Server
) -> None:
    vitals = measure(with_s3(settings, moto_server), catalog)
    assert vitals.objects.problem is None
    assert vitals.originals.milliseconds is not None


# -- stores --


def test_a_wrong_bucket_is_a_problem_and_an_absent_key_is_none(
    settings: Settings, catalog: sa.Engine, moto_server: S3Server
) -> None:
    vitals = measure(with_s3(settings, moto_server, object_store_url="s3://no-such-bucket"), catalog)
    assert vitals.objects.problem is not None
    assert "create the bucket or correct its name" in vitals.objects.problem
    assert vitals.originals.answered
    assert part(vitals, PartName.OBJECTS).health is Health.UNHEALTHY
    assert part(vitals, PartName.ORIGINALS).health is Health.HEALTHY
    assert whole(parts(vitals)) is Health.UNHEALTHY


def test_a_store_that_refuses_connections_says_so_and_the_rest_is_measured(
    settings: Settings, catalog: sa.Engine, moto_server: S3Server
) -> None:
    vitals = measure(with_s3(settings, moto_server, r2_endpoint_url=NOBODY), catalog)
    assert vitals.objects.problem is not None
    assert vitals.originals.problem is not None
    assert vitals.catalog.answered
    assert vitals.overview is not None
    assert part(vitals, PartName.OBJECTS).first


def test_a_store_that_hangs_is_given_up_on(settings: Settings, catalog: sa.Engine, moto_server: S3Server) -> None:
    with hanging() as address:
        vitals = measure(with_s3(settings, moto_server, r2_endpoint_url=f"http://{address}"), catalog, patience=0.5)
    assert vitals.objects.problem is not None
    assert "does not answer" in vitals.objects.problem
    assert vitals.catalog.answered


def test_a_folder_that_is_gone_is_a_problem(settings: Settings, catalog: sa.Engine, tmp_path: Path) -> None:
    with monitoring(settings, catalog) as monitor:
        assert monitor.vitals(20).objects.answered
    blocked = tmp_path / "a-file"
    blocked.touch()
    moved = settings.model_copy(update={"object_store_url": (blocked / "objects").as_uri()})
    vitals = measure(Settings(_env_file=None, **moved.model_dump(exclude_unset=True)), catalog)  # type: ignore[call-arg]
    assert vitals.objects.problem is not None


# -- the catalog --


@pytest.mark.parametrize("away", ["refuses", "hangs"])
def test_a_catalog_that_is_away_is_told_and_the_stores_are_measured(settings: Settings, away: str) -> None:
    with hanging() as address:
        where = address if away == "hangs" else NOBODY.removeprefix("http://")
        engine = sa.create_engine(f"postgresql+psycopg://nobody@{where}/catalog")
        vitals = measure(settings, engine, patience=1.0)
    assert vitals.catalog.problem is not None
    assert vitals.objects.answered
    assert (vitals.overview, vitals.workers, vitals.storage, vitals.heartbeat, vitals.figures) == (None,) * 5
    found = parts(vitals)
    assert whole(found) is Health.UNHEALTHY
    assert {each.name for each in found if each.health is Health.UNHEALTHY} == {
        PartName.CATALOG,
        PartName.QUEUE,
        PartName.WORKERS,
        PartName.PIPELINE,
        PartName.HOSTS,
        PartName.SOURCES,
    }


def test_a_catalog_that_comes_back_is_seen_by_the_same_monitor(settings: Settings, catalog: sa.Engine) -> None:
    with monitoring(settings, catalog) as monitor:
        assert monitor.vitals(20).catalog.answered
        with session(catalog) as connection:
            connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                    " AND datname = current_database()"
                )
            )
        assert monitor.vitals(20).catalog.answered


# -- what is broken --


def test_an_error_of_ours_is_told_and_logged_once_and_the_rest_is_measured(
    settings: Settings, catalog: sa.Engine, connection: sa.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute(sa.text("ALTER TABLE cdn_delivery_probes RENAME COLUMN warm_ms TO lukewarm_ms"))
    for _ in range(2):
        with monitoring(settings, catalog) as monitor:
            looks = [monitor.vitals(20) for _ in range(2)]
    for vitals in looks:
        assert vitals.delivery is None
        assert list(vitals.unmeasurable) == ["delivery"]
        assert (
            "UndefinedColumn" in vitals.unmeasurable["delivery"] or "does not exist" in vitals.unmeasurable["delivery"]
        )
        assert "could not be measured" in part(vitals, PartName.DELIVERY).words
        assert vitals.overview is not None
    logged = [record for record in caplog.records if "could not be measured" in record.getMessage()]
    assert [bool(record.exc_info) for record in logged] == [True, True]  # once by each of two monitors


def test_what_is_measured_again_is_broken_no_more(
    settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [ValueError("'new_kind' is not a valid FailureKind")]

    def look_over_or_fail(*arguments: Any) -> Overview:
        if errors:
            raise errors.pop()
        return look_over(*arguments)

    monkeypatch.setattr("cdn_pipeline.observe.monitor.look_over", look_over_or_fail)
    with monitoring(settings, catalog) as monitor:
        monkeypatch.setattr(monitor._overview, "_fresh_for", -1)
        broken = monitor.vitals(20)
        assert broken.unmeasurable == {
            "overview": "could not be measured: ValueError: 'new_kind' is not a valid FailureKind"
        }
        assert part(broken, PartName.QUEUE).words == broken.unmeasurable["overview"]
        mended = monitor.vitals(20)
    assert mended.overview is not None
    assert mended.unmeasurable == {}


def test_a_part_that_is_away_is_not_broken(settings: Settings, catalog: sa.Engine, moto_server: S3Server) -> None:
    assert measure(with_s3(settings, moto_server, r2_endpoint_url=NOBODY), catalog).unmeasurable == {}


# -- disks --


def test_of_several_disks_the_fullest_is_told(settings: Settings, tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    with TemporaryDirectory(dir=shared_memory) as other:
        folders = [tmp_path / "a-store", Path(other)]
        folders[0].mkdir()
        usages = [psutil.disk_usage(str(folder)) for folder in folders]
        for objects, originals in (folders, reversed(folders)):
            stores = {"object_store_url": objects.as_uri(), "originals_store_url": originals.as_uri()}
            values = {**settings.model_dump(exclude_unset=True), **stores}
            found = fullest_disk(Settings(_env_file=None, **values))  # type: ignore[call-arg]
            assert found is not None
            fullest = max(usage.used / (usage.used + usage.free) for usage in usages)
            assert found.used_share == pytest.approx(fullest, abs=0.01)


# -- workers --


def idle_since(connection: sa.Connection, minutes: float) -> None:
    connection.execute(
        sa.text("UPDATE cdn_image_jobs SET created_at = :then, next_attempt_at = :then"),
        {"then": catalog_time(connection) - timedelta(minutes=minutes)},
    )


def test_work_that_waits_while_nobody_works_is_unhealthy_after_ten_minutes(
    settings: Settings, catalog: sa.Engine, connection: sa.Connection
) -> None:
    see(connection, reference())
    limit = NO_WORKERS_ERROR.total_seconds() / 60
    idle_since(connection, limit - 1)
    assert part(measure(settings, catalog), PartName.WORKERS).health is Health.HEALTHY
    idle_since(connection, limit + 1)
    vitals = measure(settings, catalog)
    assert vitals.workers is not None
    assert (vitals.workers.leases, vitals.workers.due) == (0, 1)
    assert vitals.workers.idle_for is not None
    assert vitals.workers.idle_for > NO_WORKERS_ERROR
    found = part(vitals, PartName.WORKERS)
    assert found.health is Health.UNHEALTHY
    assert "nobody has worked" in found.words


def test_a_lease_that_lives_is_a_worker_however_long_others_wait(
    settings: Settings, catalog: sa.Engine, connection: sa.Connection
) -> None:
    register(connection, RUN)
    see(connection, reference())
    take(connection)
    see(connection, reference(image="2"))
    connection.execute(
        sa.text("UPDATE cdn_image_jobs SET created_at = :then, next_attempt_at = :then WHERE status = 'queued'"),
        {"then": catalog_time(connection) - 2 * NO_WORKERS_ERROR},
    )
    at_work = measure(settings, catalog).workers
    assert at_work is not None
    assert (at_work.runs, at_work.leases, at_work.due, at_work.idle_for) == (1, 1, 1, None)


def test_the_lease_of_a_killed_run_is_nobodys_work(
    settings: Settings, catalog: sa.Engine, connection: sa.Connection
) -> None:
    with session(catalog) as of_run:
        register(of_run, RUN)
        see(of_run, reference())
        take(of_run)
        of_run.execute(sa.text("SELECT pg_advisory_unlock_all()"))
    at_work = measure(settings, catalog).workers
    assert at_work is not None
    assert (at_work.runs, at_work.leases) == (0, 0)


def test_jobs_behind_a_breaker_or_on_hold_are_nobodys_fault(
    settings: Settings, catalog: sa.Engine, connection: sa.Connection
) -> None:
    see(connection, reference(), reference(image="2"))
    idle_since(connection, 60)
    connection.execute(
        sa.text(
            "INSERT INTO cdn_hosts (host, failures, opened_at, retry_at)"
            " SELECT host, 5, now(), now() + interval '1 hour' FROM cdn_image_jobs LIMIT 1"
        )
    )
    at_work = measure(settings, catalog).workers
    assert at_work is not None
    assert (at_work.due, at_work.idle_for) == (0, None)


def test_a_daemon_that_was_never_seen_is_no_trouble_and_one_that_fell_silent_is(
    settings: Settings, catalog: sa.Engine, connection: sa.Connection
) -> None:
    never = measure(settings, catalog)
    assert never.heartbeat is None
    assert part(never, PartName.WORKERS).health is Health.HEALTHY
    assert "not seen yet" in part(never, PartName.WORKERS).words
    beat(connection, "due_images_sensor")
    seen = measure(settings, catalog)
    assert seen.heartbeat_age is not None
    assert seen.heartbeat_age < HEARTBEAT_STALE
    assert part(seen, PartName.WORKERS).health is Health.HEALTHY
    connection.execute(sa.text("UPDATE cdn_heartbeats SET beat_at = beat_at - :long"), {"long": HEARTBEAT_STALE})
    assert part(measure(settings, catalog), PartName.WORKERS).health is Health.UNHEALTHY


# -- what it says --


def test_every_part_that_is_judged_names_a_section_that_the_runbook_has(settings: Settings, catalog: sa.Engine) -> None:
    runbook = (project_root() / RUNBOOK).read_text()
    headings = {_anchor(line.lstrip("# ")) for line in runbook.splitlines() if line.startswith("#")}
    away = measure(settings, sa.create_engine(f"postgresql+psycopg://nobody@{NOBODY[7:]}/x"))
    for found in (*parts(measure(settings, catalog)), *parts(away)):
        assert found.section in headings, found


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return "".join(letter for letter in heading.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")
