"""What a shard says of itself has only numbers that are of it."""

from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.orchestration.reporting import publication_numbers
from cdn_pipeline.queue.outcomes import Verdict

_SPEED = "images per second (run)"


def test_a_shard_tells_the_speed_of_its_run_only_if_it_had_a_part_in_it() -> None:
    worked, failed = Tally(), Tally()
    worked.verdicts[Verdict.PUBLISHED] = 3
    failed.verdicts[Verdict.FAILED] = 1
    failed.failures[FailureKind.IMAGE_CORRUPT] = 1
    assert publication_numbers(worked, 17.84)[_SPEED] == 17.8
    for idle in (failed, Tally()):
        assert publication_numbers(idle, 17.84)[_SPEED] is None
