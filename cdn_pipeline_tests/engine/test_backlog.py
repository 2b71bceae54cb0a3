import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.engine.backlog import Admission, Backlog, OpenGate
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.states import JobType, Stage

NOW = datetime.now(UTC)


def job(host: str, *, hours: float = 1.0, shard: str = "00", stage: Stage = Stage.DOWNLOAD) -> DueJob:
    return DueJob(
        job_id=uuid.uuid4(),
        asset_id=uuid.uuid4(),
        shard=shard,
        job_type=JobType.INGEST,
        stage=stage,
        recipe=INSTAGRAM.recipe,
        priority=4,
        deadline=NOW + timedelta(hours=hours),
        force=False,
        retry_count=0,
        owner_id="owner",
        source_type="post_thumbnail",
        source_id="1",
        media_id="1",
        urls=(f"https://{host}/1.jpg",),
        ranks=(1,),
        host=host,
        identity="file:1",
        url_expires_at=None,
        source_etag=None,
        source_last_modified=None,
        original_sha256=None,
        original_identity=None,
        original_rank=None,
        original_file_size=None,
        last_failure=None,
        claimed_at=NOW,
        current_paths=frozenset(),
        up_to_date=False,
    )


class Doorkeeper(OpenGate):
    """Says of each host what it was told to; of the others, that they may be asked."""

    def __init__(self, **hosts: Admission) -> None:
        self.hosts = hosts

    def admits(self, job: DueJob) -> Admission:
        return self.hosts.get(job.host, Admission.START) if job.stage is Stage.DOWNLOAD else Admission.START


def backlog(gate: OpenGate, *jobs: DueJob) -> Backlog:
    made = Backlog(gate)
    for each in jobs:
        made.push(each)
    return made


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100)), max_size=30))
def test_jobs_come_out_in_the_order_of_their_deadlines_whatever_their_hosts(jobs: list[tuple[str, float]]) -> None:
    waiting = backlog(OpenGate(), *(job(host, hours=hours) for host, hours in jobs))
    assert len(waiting) == len(list(waiting)) == len(jobs)
    taken = [waiting.pop() for _ in jobs]
    assert [each.order for each in taken if each] == sorted(each.order for each in taken if each)
    assert waiting.pop() is None
    assert not waiting


def test_a_host_without_room_holds_up_no_other() -> None:
    gate = Doorkeeper(full=Admission.WAIT)
    urgent, later = job("full", hours=1), job("well", hours=9)
    waiting = backlog(gate, urgent, later)
    assert waiting.crowded_hosts() == {"full"}
    assert waiting.pop() is later
    assert waiting.pop() is None
    gate.hosts.clear()
    assert waiting.pop() is urgent


def test_a_job_that_downloads_nothing_waits_for_no_host() -> None:
    gate = Doorkeeper(full=Admission.WAIT)
    encoding = job("full", stage=Stage.ENCODE)
    assert backlog(gate, job("full"), encoding).pop() is encoding


def test_only_jobs_of_hosts_that_are_left_alone_are_released() -> None:
    gate = Doorkeeper(shut=Admission.RELEASE, full=Admission.WAIT)
    shut = [job("shut"), job("shut", shard="01")]
    waiting = backlog(gate, *shut, job("full"), job("well"))
    assert set(waiting.release()) == set(shut)
    assert len(waiting) == 2
    assert len(waiting.clear()) == 2
    assert not waiting


def test_a_shard_has_jobs_until_the_last_is_taken() -> None:
    waiting = backlog(Doorkeeper(full=Admission.WAIT), job("full", shard="01"), job("well", shard="02"))
    assert waiting.has_job_of("01")
    assert not waiting.has_job_of("01", beside=frozenset({"full"}))
    assert waiting.has_job_of("02", beside=frozenset({"full"}))
    waiting.pop()
    assert not waiting.has_job_of("02")
    assert not waiting.has_job_of("03")
