"""The stream and a gate that lets some hosts' jobs wait."""

import asyncio
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from cdn_pipeline.engine import stream as stream_module
from cdn_pipeline.engine.backlog import Admission
from cdn_pipeline.engine.stream import ShardReport, Stream
from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.queue.due import DueJob, Selection
from cdn_pipeline.queue.leases import Run
from cdn_pipeline.queue.outcomes import Outcome, Verdict
from cdn_pipeline_tests.engine.runs import EVERYTHING, QUICK, assert_nothing_in_hand, job_states, jobs
from cdn_pipeline_tests.engine.test_backlog import Doorkeeper
from cdn_pipeline_tests.engine.test_stream import add, new_run, outcome, reference

__all__ = ["new_run"]

SHARDS = ["00", "01", "02", "03"]
SLOW = "slow.example"


def fill(catalog: sa.Engine, *, slow: int, others: int) -> None:
    """The slow host's images die first in every shard, so they are claimed first."""
    add(catalog, [reference(n, SHARDS[n % 4], days=1) for n in range(slow)])
    add(catalog, [reference(slow + n, SHARDS[n % 4], days=3) for n in range(others)])
    with catalog.begin() as connection:
        for table, dies_at in (("cdn_image_jobs", "deadline"), ("cdn_image_assets", "url_expires_at")):
            connection.execute(
                sa.text(f"UPDATE {table} SET source_url = :url WHERE {dies_at} < now() + interval '2 days'"),
                {"url": f"https://{SLOW}/x.jpg"},
            )


async def publish(job: DueJob) -> Outcome:
    await asyncio.sleep(0)
    return outcome(job, Verdict.PUBLISHED)


@pytest.fixture(autouse=True)
def small_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CLAIMED_AHEAD", 16)
    monkeypatch.setattr(stream_module, "CROWDED_POLL_SECONDS", 0.1)


def test_a_host_without_room_takes_neither_the_places_nor_the_leases_of_others(
    catalog: sa.Engine, new_run: Callable[[], Run]
) -> None:
    fill(catalog, slow=80, others=80)
    gate = Doorkeeper(**{SLOW: Admission.WAIT})
    seen: list[str] = []

    async def process(job: DueJob) -> Outcome:
        seen.append(job.host)
        if len(seen) == 80:
            assert [each["host"] for each in jobs(catalog) if each["status"] == "processing"].count(SLOW) <= 16
            gate.hosts.clear()
        return await publish(job)

    found: list[ShardReport] = []
    asyncio.run(Stream(catalog, new_run(), Selection(QUICK, EVERYTHING), process, found.append, gate=gate).run(SHARDS))
    assert seen == ["127.0.0.1"] * 80 + [SLOW] * 80
    assert Tally.total([report.tally for report in found]).published == 160
    assert job_states(catalog) == {"completed": 160}


def test_a_shard_without_work_is_reported_although_a_host_has_no_room(
    catalog: sa.Engine, new_run: Callable[[], Run]
) -> None:
    add(catalog, [reference(1, "00")])
    gate = Doorkeeper(**{"127.0.0.1": Admission.WAIT})
    found: list[str] = []

    def finished(report: ShardReport) -> None:
        found.append(report.shard)
        if len(found) == 3:
            gate.hosts.clear()

    asyncio.run(Stream(catalog, new_run(), Selection(QUICK, EVERYTHING), publish, finished, gate=gate).run(SHARDS))
    assert sorted(found[:3]) == ["01", "02", "03"]
    assert found[3:] == ["00"]


def test_many_hosts_without_room_do_not_make_a_run_claim_everything(
    catalog: sa.Engine, new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "MAX_BACKLOG", 20)
    add(catalog, [reference(100 + n, "00", days=1 + n / 100) for n in range(100)])  # one host's after the other's
    with catalog.begin() as connection:
        for table in ("cdn_image_jobs", "cdn_image_assets"):
            host = "substring(source_url FROM '(\\d)\\d\\.jpg')"
            connection.execute(sa.text(f"UPDATE {table} SET source_url = 'https://' || {host} || '.example/x.jpg'"))
    gate = Doorkeeper(**{f"{n}.example": Admission.WAIT for n in range(10)})
    found: list[ShardReport] = []
    stream = Stream(catalog, new_run(), Selection(QUICK, EVERYTHING), publish, found.append, gate=gate)

    async def main() -> int:
        running = asyncio.create_task(stream.run(["00"]))
        await asyncio.sleep(1)
        claimed = job_states(catalog)["processing"]
        gate.hosts.clear()
        await running
        return claimed

    assert asyncio.run(main()) < 20 + 16
    assert Tally.total([report.tally for report in found]).published == 100


def test_jobs_of_a_host_that_is_left_alone_are_given_back_as_if_never_claimed(
    catalog: sa.Engine, new_run: Callable[[], Run]
) -> None:
    """The breaker opens when its jobs have been claimed."""
    fill(catalog, slow=20, others=20)
    gate = Doorkeeper()
    seen: list[str] = []

    async def process(job: DueJob) -> Outcome:
        if not seen:
            with catalog.begin() as connection:
                connection.execute(
                    sa.text("""
                        INSERT INTO cdn_hosts (host, opened_at, retry_at)
                        VALUES (:host, now(), now() + interval '1 hour')"""),
                    {"host": SLOW},
                )
            gate.hosts[SLOW] = Admission.RELEASE
        seen.append(job.host)
        return await publish(job)

    found: list[ShardReport] = []
    asyncio.run(Stream(catalog, new_run(), Selection(QUICK, EVERYTHING), process, found.append, gate=gate).run(SHARDS))
    tally = Tally.total([report.tally for report in found])
    assert tally.images == tally.published == 21
    assert tally.not_in_rate == 0
    assert_nothing_in_hand(catalog)
    left = [each for each in jobs(catalog) if each["status"] == "queued"]
    assert len(left) == 19
    assert {(each["host"], each["retry_count"], each["failure_kind"]) for each in left} == {(SLOW, 0, None)}


class Probing(Doorkeeper):
    """Has a host asked until it says so."""

    is_probing = True


def test_no_shard_is_finished_while_a_host_is_being_probed(catalog: sa.Engine, new_run: Callable[[], Run]) -> None:
    """To the catalog the host is shut then, for longer than the run waits; a good answer makes its images due."""
    add(catalog, [reference(1, "00")])
    with catalog.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO cdn_hosts (host, opened_at, retry_at)
                VALUES ('127.0.0.1', now() - interval '1 minute', now() + interval '1 minute')""")
        )
    gate = Probing()
    found: list[ShardReport] = []
    stream = Stream(catalog, new_run(), Selection(QUICK, EVERYTHING), publish, found.append, gate=gate)

    async def main() -> list[ShardReport]:
        running = asyncio.create_task(stream.run(["00"]))
        await asyncio.sleep(0.5)
        before = list(found)
        with catalog.begin() as connection:
            connection.execute(sa.text("DELETE FROM cdn_hosts"))
        gate.is_probing = False
        await running
        return before

    assert asyncio.run(main()) == []
    assert [report.tally.published for report in found] == [1]
