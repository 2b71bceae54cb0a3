"""The numbers that checks, health and alerts judge by. Nowhere else."""

from dataclasses import dataclass

SUCCESS_RATE_WARNING = 0.95
SUCCESS_RATE_ERROR = 0.90
NOT_IN_RATE_ERROR = 0.20  # of the claimed images: gone, expired or released
MINIMUM_SAMPLE = 20  # images; one failure of two is no reason to wake anybody


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a number is as it should be; `is_error` tells an error from a warning."""

    passed: bool
    is_error: bool
    words: str


def judge_success_rate(completed: int, failed: int) -> Judgement:
    """Judges completed / (completed + failed)."""
    judged = completed + failed
    if judged == 0:
        return Judgement(True, False, "no image to judge")
    rate = completed / judged
    words = f"{completed} of {judged} images completed ({rate:.1%})"
    if judged < MINIMUM_SAMPLE:
        return Judgement(True, False, f"{words}; fewer than {MINIMUM_SAMPLE} are not judged")
    if rate < SUCCESS_RATE_ERROR:
        return Judgement(False, True, f"{words}, below {SUCCESS_RATE_ERROR:.0%}")
    if rate < SUCCESS_RATE_WARNING:
        return Judgement(False, False, f"{words}, below {SUCCESS_RATE_WARNING:.0%}")
    return Judgement(True, False, words)


def judge_not_in_rate(not_in_rate: int, claimed: int) -> Judgement:
    """Judges the share of claimed images that ended gone, expired or released."""
    if claimed == 0:
        return Judgement(True, False, "no image was claimed")
    share = not_in_rate / claimed
    words = f"{not_in_rate} of {claimed} claimed images ended gone, expired or released ({share:.1%})"
    if claimed < MINIMUM_SAMPLE:
        return Judgement(True, False, f"{words}; fewer than {MINIMUM_SAMPLE} are not judged")
    passed = share <= NOT_IN_RATE_ERROR
    return Judgement(passed, not passed, words if passed else f"{words}, above {NOT_IN_RATE_ERROR:.0%}")


def judge_objects(inspected: int, missing: int) -> Judgement:
    """Judges a sample of published objects: one that is missing is one too many."""
    words = f"{inspected - missing} of {inspected} inspected objects are in the store"
    return Judgement(missing == 0, missing > 0, words)
