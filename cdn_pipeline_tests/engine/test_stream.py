import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.engine import stream as stream_module
from cdn_pipeline.engine.stream import ShardReport, Stream
from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue import due, leases
from cdn_pipeline.queue.due import DueJob, Selection
from cdn_pipeline.queue.intake import record
from cdn_pipeline.queue.leases import Run, hold_run
from cdn_pipeline.queue.outcomes import Outcome, Verdict
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.sources.discovery import ImageKey, ImageReference, compare
from cdn_pipeline.sources.instagram import SourceUrl
from cdn_pipeline_tests.engine.runs import EVERYTHING, QUICK, assert_nothing_in_hand, job_states, jobs, retries, rows

NOW = datetime.now(UTC)
Process = Callable[[DueJob], Coroutine[Any, Any, Outcome]]


def reference(number: int, shard: str, *, source_type: str = "post_thumbnail", days: float = 4.0) -> ImageReference:
    url = SourceUrl(f"http://127.0.0.1/{number}.jpg", f"file:{number}", 1080, NOW + timedelta(days=days))
    return ImageReference(ImageKey(source_type, str(number), "m"), f"owner-{shard}", shard, None, (url,), NOW)


def add(catalog: sa.Engine, references: Sequence[ImageReference]) -> None:
    with catalog.begin() as connection:
        record(connection, INSTAGRAM, [compare(reference, None, NOW) for reference in references])


def outcome(
    job: DueJob, verdict: Verdict, failure: FailureKind | None = None, retry_in_seconds: float = 0.0
) -> Outcome:
    return Outcome(
        job.job_id,
        job.asset_id,
        job.shard,
        verdict,
        job.stage,
        job.identity,
        job.urls[0],
        failure=failure,
        retry_in_seconds=retry_in_seconds,
    )


async def publish(job: DueJob) -> Outcome:
    await asyncio.sleep(0)
    return outcome(job, Verdict.PUBLISHED)


class Recorder:
    """Does nothing to images but write down the order in which they came."""

    def __init__(self) -> None:
        self.seen: list[DueJob] = []

    async def __call__(self, job: DueJob) -> Outcome:
        self.seen.append(job)
        return await publish(job)


@pytest.fixture
def new_run(catalog: sa.Engine) -> Iterator[Callable[[], Run]]:
    numbers = itertools.count()
    with ExitStack() as stack:
        yield lambda: stack.enter_context(hold_run(catalog, f"run-{next(numbers)}"))


def work(
    catalog: sa.Engine,
    run: Run,
    process: Process,
    shards: Sequence[str],
    *,
    collection: Collection = QUICK,
    stages: frozenset[Stage] = EVERYTHING,
    owner_ids: tuple[str, ...] | None = None,
    limit: int | None = None,
) -> list[ShardReport]:
    found: list[ShardReport] = []
    selection = Selection(collection, stages, owner_ids)
    asyncio.run(Stream(catalog, run, selection, process, found.append, limit=limit).run(shards))
    return found


def total(found: Sequence[ShardReport]) -> Tally:
    return Tally.total([report.tally for report in found])


def test_within_a_priority_the_earliest_deadline_comes_first_over_all_shards(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "CLAIMED_AHEAD", 16)  # so that shards are claimed again and again
    shards = ["00", "01", "02", "3f"]
    types = ["post_thumbnail", "profile_avatar", "post_carousel"]
    days = [((number * 37) % 101) / 30 for number in range(100)]
    add(
        catalog,
        [
            # the first shard has the earliest deadlines of all
            reference(n, shards[n % 4], source_type=types[n % 3], days=days[n] if n % 4 else days[n] / 100)
            for n in range(100)
        ],
    )
    recorder = Recorder()
    found = work(catalog, new_run(), recorder, shards)
    assert len(recorder.seen) == 100
    assert [job.order for job in recorder.seen] == sorted(job.order for job in recorder.seen)
    assert {report.shard: report.tally.published for report in found} == dict.fromkeys(shards, 25)


def test_a_shard_is_reported_as_soon_as_it_is_finished(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(n, shard) for n, shard in enumerate(["00"] * 3 + ["01"] * 3)])
    released = asyncio.Event()
    order: list[str] = []

    async def process(job: DueJob) -> Outcome:
        if job.shard == "00":
            await released.wait()
        return outcome(job, Verdict.PUBLISHED)

    async def main() -> None:
        def finished(report: ShardReport) -> None:
            order.append(report.shard)
            if report.shard == "01":
                released.set()

        selection = Selection(QUICK, EVERYTHING)
        await Stream(catalog, new_run(), selection, process, finished).run(["00", "01", "02"])

    asyncio.run(main())
    assert sorted(order[:2]) == ["01", "02"]
    assert order[2:] == ["00"]


def test_no_more_images_than_places_are_in_work_at_once(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "IN_HAND", 5)
    add(catalog, [reference(n, f"{n % 3:02x}") for n in range(40)])
    at_once, most = 0, 0

    async def process(job: DueJob) -> Outcome:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002)
        at_once -= 1
        return outcome(job, Verdict.PUBLISHED)

    assert total(work(catalog, new_run(), process, ["00", "01", "02"])).published == 40
    assert most == 5


def test_retries_inside_the_run_are_waited_for_and_later_ones_are_not(
    catalog: sa.Engine, new_run: Callable[[], Run]
) -> None:
    add(catalog, [reference(1, "00"), reference(2, "00"), reference(3, "01")])

    async def process(job: DueJob) -> Outcome:
        if job.source_id == "1" and job.retry_count < 2:
            return outcome(job, Verdict.RETRYING, FailureKind.SOURCE_ERROR, 0.1)
        if job.source_id == "2":
            return outcome(job, Verdict.RETRYING, FailureKind.SOURCE_ERROR, 900.0)
        return outcome(job, Verdict.PUBLISHED)

    tally = total(work(catalog, new_run(), process, ["00", "01"]))
    assert (tally.published, tally.failed, tally.images) == (2, 1, 3)
    assert tally.attempts_failed[FailureKind.SOURCE_ERROR] == 3
    assert job_states(catalog) == {"completed": 2, "queued": 1}
    assert_nothing_in_hand(catalog)


def test_a_limit_bounds_what_is_claimed(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(n, f"{n % 8:02x}") for n in range(40)])
    found = work(catalog, new_run(), publish, [f"{n:02x}" for n in range(8)], limit=7)
    assert total(found).published == 7
    assert len(found) == 8
    assert job_states(catalog) == {"completed": 7, "queued": 33}


def test_only_the_selected_owners_stages_and_shards_are_touched(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(n, f"{n % 4:02x}") for n in range(40)])
    before = {job["id"]: job for job in jobs(catalog)}
    assert total(work(catalog, new_run(), publish, ["01", "02"], owner_ids=("owner-02",))).published == 10
    for job in jobs(catalog):
        assert (job["status"] == "completed") if job["shard"] == "02" else (job == before[job["id"]])
    assert total(work(catalog, new_run(), publish, ["01"], stages=frozenset({Stage.ENCODE}))).images == 0


def test_stopping_releases_everything_at_once(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(n, f"{n % 4:02x}") for n in range(200)])

    async def main() -> None:
        async def process(job: DueJob) -> Outcome:
            if int(job.source_id) % 2:
                return outcome(job, Verdict.PUBLISHED)
            await asyncio.sleep(3600)
            raise AssertionError

        shards = [f"{n:02x}" for n in range(4)]
        stream = Stream(catalog, new_run(), Selection(QUICK, EVERYTHING), process, lambda report: None)
        running = asyncio.create_task(stream.run(shards))
        while stream.tally().published < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stream.stop()
        async with asyncio.timeout(5):
            await running

    asyncio.run(main())
    assert_nothing_in_hand(catalog)
    states = job_states(catalog)
    assert states["completed"] >= 20
    assert states["queued"] == 200 - states["completed"]
    assert {job["retry_count"] for job in jobs(catalog)} == {0}
    assert total(work(catalog, new_run(), publish, [f"{n:02x}" for n in range(4)])).published == states["queued"]


@pytest.mark.parametrize("how", ["raises", "cancels itself"])
def test_what_ends_the_work_releases_everything(catalog: sa.Engine, new_run: Callable[[], Run], how: str) -> None:
    add(catalog, [reference(n, "00") for n in range(100)])
    calls = itertools.count()

    async def process(job: DueJob) -> Outcome:
        if next(calls) == 30:
            raise RuntimeError("broken") if how == "raises" else asyncio.CancelledError
        await asyncio.sleep(0.01)
        return outcome(job, Verdict.PUBLISHED)

    with pytest.raises(RuntimeError if how == "raises" else asyncio.CancelledError):
        work(catalog, new_run(), process, ["00"])
    assert_nothing_in_hand(catalog)
    assert sum(job_states(catalog).values()) == 100


def test_slow_name_lookups_do_not_keep_leases_from_being_renewed(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "RENEW_EVERY", timedelta(seconds=0.1))
    add(catalog, [reference(n, "00") for n in range(60)])
    renewed = threading.Event()

    def lease() -> object:
        [row] = rows(catalog, "SELECT max(lease_until) AS last FROM cdn_image_jobs")
        return row["last"]

    async def process(job: DueJob) -> Outcome:
        if job.source_id == "0":
            claimed = lease()
            async with asyncio.timeout(10):
                while lease() == claimed:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            renewed.set()
        else:
            await asyncio.to_thread(renewed.wait, 10)  # asyncio's own threads are all taken
        return outcome(job, Verdict.PUBLISHED)

    assert total(work(catalog, new_run(), process, ["00"])).published == 60


def test_renewed_leases_keep_a_slow_image_from_being_stolen(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (due, leases):
        monkeypatch.setattr(module, "LEASE", timedelta(seconds=0.6))
    monkeypatch.setattr(stream_module, "RENEW_EVERY", timedelta(seconds=0.2))
    monkeypatch.setattr(stream_module, "POLL_SECONDS", 0.1)
    add(catalog, [reference(1, "00")])
    attempts = []

    async def process(job: DueJob) -> Outcome:
        attempts.append(job)
        await asyncio.sleep(1.5)
        return outcome(job, Verdict.PUBLISHED)

    async def main() -> list[ShardReport]:
        found: list[ShardReport] = []
        streams = [Stream(catalog, new_run(), Selection(QUICK, EVERYTHING), process, found.append) for _ in range(2)]
        await asyncio.gather(*(stream.run(["00"]) for stream in streams))
        return found

    assert total(asyncio.run(main())).published == 1
    assert len(attempts) == 1
    assert job_states(catalog) == {"completed": 1}


def test_a_lease_that_was_not_renewed_goes_to_another_run_and_the_late_outcome_is_dropped(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (due, leases):
        monkeypatch.setattr(module, "LEASE", timedelta(seconds=0.3))
    monkeypatch.setattr(stream_module, "POLL_SECONDS", 0.1)
    add(catalog, [reference(1, "00")])
    attempts = Counter[str]()

    async def main() -> list[list[ShardReport]]:
        async def slow(job: DueJob) -> Outcome:
            attempts["slow"] += 1
            await asyncio.sleep(1.2)
            return outcome(job, Verdict.FAILED, FailureKind.IMAGE_CORRUPT)

        async def quick(job: DueJob) -> Outcome:
            attempts["quick"] += 1
            return await publish(job)

        found: list[list[ShardReport]] = [[], []]
        selection = Selection(QUICK, EVERYTHING)
        first = asyncio.create_task(Stream(catalog, new_run(), selection, slow, found[0].append).run(["00"]))
        await asyncio.sleep(0.2)
        await Stream(catalog, new_run(), selection, quick, found[1].append).run(["00"])
        await first
        return found

    slow_reports, quick_reports = asyncio.run(main())
    assert attempts == {"slow": 1, "quick": 1}
    assert (total(slow_reports).images, total(quick_reports).published) == (0, 1)
    assert job_states(catalog) == {"completed": 1}


def test_two_runs_over_the_same_shards_share_the_work(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "CLAIMED_AHEAD", 64)
    monkeypatch.setattr(stream_module, "POLL_SECONDS", 0.1)
    shards = [f"{n:02x}" for n in range(8)]
    add(catalog, [reference(n, shards[n % 8]) for n in range(400)])
    attempts = Counter[str]()

    async def process(job: DueJob) -> Outcome:
        attempts[job.source_id] += 1
        await asyncio.sleep(0.005)
        return outcome(job, Verdict.PUBLISHED)

    async def main() -> list[list[ShardReport]]:
        found: list[list[ShardReport]] = [[], []]
        selection = Selection(QUICK, EVERYTHING)
        streams = [Stream(catalog, new_run(), selection, process, reports.append) for reports in found]
        await asyncio.gather(*(stream.run(shards) for stream in streams))
        return found

    found = asyncio.run(main())
    assert set(attempts.values()) == {1}
    assert len(attempts) == 400
    assert [sorted(report.shard for report in reports) for reports in found] == [shards, shards]
    published = [total(reports).published for reports in found]
    assert sum(published) == 400
    assert min(published) > 0


def test_leases_of_a_run_that_died_are_taken_over_at_once(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(n, "00") for n in range(10)])
    with hold_run(catalog, "dies") as dead, catalog.begin() as connection:
        due.claim(connection, dead, Selection(QUICK, EVERYTHING), ["00"], batch=10, total=10)
    assert job_states(catalog) == {"processing": 10}
    assert total(work(catalog, new_run(), publish, ["00"])).published == 10


def test_a_catalog_that_goes_away_ends_the_run_with_its_error(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(n, "00") for n in range(100)])
    run = new_run()

    async def process(job: DueJob) -> Outcome:
        with catalog.begin() as connection:
            connection.execute(sa.text("ALTER TABLE IF EXISTS cdn_image_jobs RENAME TO somewhere_else"))
        return outcome(job, Verdict.PUBLISHED)

    with pytest.raises(sa.exc.ProgrammingError):
        work(catalog, run, process, ["00"])


def test_jobs_that_others_have_locked_are_looked_for_again_after_a_pause(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(catalog, [reference(1, "00")])
    claims: list[int] = []

    def counted(*args: Any, **more: Any) -> list[DueJob]:
        claims.append(1)
        return due.claim(*args, **more)

    monkeypatch.setattr(stream_module, "claim", counted)
    with catalog.connect() as other:
        other.execute(sa.text("SELECT FROM cdn_image_jobs FOR UPDATE"))
        unlocking = threading.Timer(1.5, other.rollback)
        unlocking.start()
        found = work(catalog, new_run(), publish, ["00"])
        unlocking.join()
    assert total(found).published == 1
    assert len(claims) < 10


def test_a_run_takes_its_lock_again_once_the_catalog_is_no_standby_any_more(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "RENEW_EVERY", timedelta(seconds=0.1))
    add(catalog, [reference(1, "00")])
    run = new_run()
    with catalog.connect() as admin:
        admin.execution_options(isolation_level="AUTOCOMMIT")

        async def process(job: DueJob) -> Outcome:
            for statement in (
                f'ALTER DATABASE "{catalog.url.database}" SET default_transaction_read_only = on',
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'",
            ):
                admin.execute(sa.text(statement))
            await asyncio.sleep(1)
            admin.execute(sa.text(f'ALTER DATABASE "{catalog.url.database}" RESET default_transaction_read_only'))
            await asyncio.sleep(1)
            leases.renew_leases(admin, run)  # raises unless the lock is held
            return outcome(job, Verdict.PUBLISHED)

        assert total(work(catalog, run, process, ["00"])).published == 1


def test_a_finished_shard_keeps_numbers_and_no_names(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(n, "00") for n in range(5)])

    async def fail(job: DueJob) -> Outcome:
        return outcome(job, Verdict.FAILED, FailureKind.IMAGE_CORRUPT)

    [report] = work(catalog, new_run(), fail, ["00"])
    assert report.tally.failures == {FailureKind.IMAGE_CORRUPT: 5}
    assert not report.tally._unsettled


def test_the_last_delay_inside_a_run_is_its_horizon(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    add(catalog, [reference(1, "00")])

    async def process(job: DueJob) -> Outcome:
        if job.retry_count == 0:
            return outcome(job, Verdict.RETRYING, FailureKind.RATE_LIMITED, 0.5)
        return outcome(job, Verdict.PUBLISHED)

    collection = replace(QUICK, retry=retries(0.1, 0.2))
    assert total(work(catalog, new_run(), process, ["00"], collection=collection)).failed == 1
    collection = replace(QUICK, retry=retries(0.1, 0.6))
    assert total(work(catalog, new_run(), process, ["00"], collection=collection)).images == 1
    assert job_states(catalog) == {"completed": 1}
