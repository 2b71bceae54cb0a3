"""The numbers that checks, health and alerts judge by. Nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from cdn_pipeline.observe.times import span

SUCCESS_RATE_WARNING = 0.95
SUCCESS_RATE_ERROR = 0.90
NOT_IN_RATE_ERROR = 0.20  # of the claimed images: gone, expired or released
PROCESSING_TIME_WARNING_MS = 2000  # mean of an hour
MINIMUM_SAMPLE = 20  # images; one failure of two is no reason to wake anybody
OLDEST_DUE_WARNING = timedelta(hours=1)  # the sensor starts a run within a minute: an hour is a queue that grows
OLDEST_DUE_ERROR = timedelta(hours=6)  # nobody works at all; a URL lives four days, so there is time to mend it
UNRENEWED_WARNING = timedelta(hours=25)  # a day, and an hour for the nightly run
UNRENEWED_ERROR = timedelta(hours=26)
HEALTH_WINDOW = timedelta(hours=24)  # what the success rate of the whole looks back on
HEALTH_DEGRADED = 0.95
HEALTH_UNHEALTHY = 0.80
LOST_LATELY = timedelta(days=7)  # an alarm that nobody can end is heard by nobody: older losses are a warning
HOLD_ALARM = timedelta(hours=24)  # how long before its expiry an image on hold is at risk: time for a person to see it
BREAKER_OPEN_WARNING = timedelta(minutes=5)  # three probes have failed: it is no hiccup
ERASURE_UNFINISHED_ERROR = timedelta(hours=1)  # one takes minutes, and somebody has promised it
QUEUE_DEPTH_WARNING = 1000  # open jobs of priorities 1-5
QUEUE_DEPTH_ERROR = 2000


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a number is as it should be; `is_error` tells an error from a warning."""

    passed: bool
    is_error: bool
    words: str


def judge_success_rate(completed: int, failed: int) -> Judgement:
    """Judges completed / (completed + failed)."""
    return _judge_rate(completed, failed, warning=SUCCESS_RATE_WARNING, error=SUCCESS_RATE_ERROR)


def judge_health(completed: int, failed: int) -> Judgement:
    """Judges the success rate of the whole within `HEALTH_WINDOW`: a warning is degraded, an error unhealthy."""
    return _judge_rate(completed, failed, warning=HEALTH_DEGRADED, error=HEALTH_UNHEALTHY)


def _judge_rate(completed: int, failed: int, *, warning: float, error: float) -> Judgement:
    judged = completed + failed
    if judged == 0:
        return Judgement(True, False, "no image to judge")
    rate = completed / judged
    words = f"{completed} of {judged} images completed ({rate:.1%})"
    if judged < MINIMUM_SAMPLE:
        return Judgement(True, False, f"{words}; fewer than {MINIMUM_SAMPLE} are not judged")
    if rate < error:
        return Judgement(False, True, f"{words}, below {error:.0%}")
    if rate < warning:
        return Judgement(False, False, f"{words}, below {warning:.0%}")
    return Judgement(True, False, words)


def judge_queue_depth(depth: int) -> Judgement:
    """Judges the open jobs of priorities 1-5, those that somebody waits for."""
    words = f"{depth} urgent jobs are in the queue"
    if depth > QUEUE_DEPTH_ERROR:
        return Judgement(False, True, f"{words}, more than {QUEUE_DEPTH_ERROR}")
    if depth > QUEUE_DEPTH_WARNING:
        return Judgement(False, False, f"{words}, more than {QUEUE_DEPTH_WARNING}")
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


def judge_stores(looked_at: int, wrong: int) -> Judgement:
    """Judges a sample of what the stores hold, read byte for byte."""
    words = f"{looked_at - wrong} of {looked_at} objects are as the catalog says"
    return Judgement(wrong == 0, wrong > 0, words)


def judge_lost(lost: int, lately: int) -> Judgement:
    """Judges the images lost on our watch: one lost within `LOST_LATELY` is an error, one lost before a warning."""
    words = f"images lost on our watch: {lost}"
    if lost:
        words += f", {lately or 'none'} of them in the last {span(LOST_LATELY)}"
    return Judgement(lost == 0, lately > 0, words)


def judge_deadlines(at_risk: int, words: str) -> Judgement:
    """Judges the images that expire before we reach them; `words` say how many and at what rate."""
    return Judgement(at_risk == 0, False, words)


def judge_oldest_due(age: timedelta | None) -> Judgement:
    """Judges how long that job of priorities 1-5 has been due that has been due longest."""
    if age is None:
        return Judgement(True, False, "no urgent job is due")
    words = f"an urgent job has been due for {span(age)}"
    if age > OLDEST_DUE_ERROR:
        return Judgement(False, True, f"{words}, more than {span(OLDEST_DUE_ERROR)}")
    if age > OLDEST_DUE_WARNING:
        return Judgement(False, False, f"{words}, more than {span(OLDEST_DUE_WARNING)}")
    return Judgement(True, False, words)


def judge_breakers(open_for: Sequence[timedelta]) -> Judgement:
    """Judges how long the breakers have been open that are open now: a warning, for hosts heal without us."""
    words = f"hosts with an open breaker: {len(open_for)}"
    long = sum(time > BREAKER_OPEN_WARNING for time in open_for)
    if long:
        return Judgement(False, False, f"{words}, {long} of them for more than {span(BREAKER_OPEN_WARNING)}")
    return Judgement(True, False, words)


def judge_erasures(unfinished: int, old: int) -> Judgement:
    """Judges the erasures that are open or wait for a purge, and those that have done so for too long."""
    words = f"unfinished erasures: {unfinished}"
    if old:
        return Judgement(False, True, f"{words}, {old} of them older than {span(ERASURE_UNFINISHED_ERROR)}")
    return Judgement(True, False, words)


def judge_failed_shards(failed: int) -> Judgement:
    """Judges the shards whose last run failed: a warning, for what is due in them is taken up by the next run."""
    return Judgement(failed == 0, False, f"shards left failed: {failed}")


def judge_scans(begun: bool, stale: int) -> Judgement:
    """Judges the shards whose source rows were not read in full for longer than a night takes."""
    if not begun:
        return Judgement(True, False, "never scanned: run `nightly_freshness`, or materialize source_images")
    return Judgement(stale == 0, False, f"shards not read in full for {span(UNRENEWED_ERROR)}: {stale}")


def judge_processing_time(mean_ms: int, completed: int) -> Judgement:
    """Judges the mean time that the stages of so many completed jobs took."""
    if completed == 0:
        return Judgement(True, False, "no job was completed")
    words = f"{mean_ms} ms on average of {completed} completed jobs"
    if completed < MINIMUM_SAMPLE:
        return Judgement(True, False, f"{words}; fewer than {MINIMUM_SAMPLE} are not judged")
    passed = mean_ms <= PROCESSING_TIME_WARNING_MS
    return Judgement(passed, False, words if passed else f"{words}, above {PROCESSING_TIME_WARNING_MS} ms")


def judge_stats(compared: int, differing: Sequence[str], missing: Sequence[str]) -> Judgement:
    """Judges stored hours that were counted again, by the names of those that differ, and of hours not stored."""
    if not (differing or missing):
        return Judgement(True, False, f"{compared} stored hours are what their jobs say")
    words = []
    if differing:
        words.append(f"{len(differing)} of {compared} stored hours differ from their jobs")
    if missing:
        words.append(f"hours not counted: {len(missing)}")
    words.append(f"backfill {', '.join(sorted({*differing, *missing}))}")  # keys of hours sort as the hours do
    return Judgement(False, bool(differing), "; ".join(words))
