"""The numbers that checks, health and alerts judge by. Nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from cdn_pipeline.observe.shares import in_percent
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
SUCCESS_OF_DAY_WARNING = 0.90  # alerts only: a bad hour is told by its own rate, within the hour
SUCCESS_OF_DAY_ERROR = 0.80
STORAGE_GROWTH_WARNING = 0.20  # in a week
STORAGE_GROWTH_FROM = 10 * 2**30  # bytes a week ago: a first backfill multiplies less, and costs cents
HEALTH_WINDOW = timedelta(hours=24)  # what the success rate of the whole looks back on
HEALTH_DEGRADED = 0.95
HEALTH_UNHEALTHY = 0.80
LOST_LATELY = timedelta(days=7)  # an alarm that nobody can end is heard by nobody: older losses are a warning
HOLD_ALARM = timedelta(hours=24)  # how long before its expiry an image on hold is at risk: time for a person to see it
BREAKER_OPEN_WARNING = timedelta(minutes=5)  # three probes have failed: it is no hiccup
ERASURE_UNFINISHED_ERROR = timedelta(hours=1)  # one takes minutes, and somebody has promised it
QUEUE_DEPTH_WARNING = 1000  # open jobs of priorities 1-5
QUEUE_DEPTH_ERROR = 2000
HEARTBEAT_STALE = timedelta(minutes=5)  # sensors tick every 20-30 s, also while they have nothing to do
SENSOR_SILENT = timedelta(minutes=2)  # six looks that were missed: a hint, where somebody waits for the next one
NO_WORKERS_ERROR = timedelta(minutes=10)  # retries ask for a run every five minutes, and a run takes seconds to start
DISK_USED_WARNING = 0.85  # of the file system of local stores
DISK_USED_ERROR = 0.95  # Postgres stops when nothing is left
CACHE_HIT_RATIO_INFO = 0.98
FIRST_BYTE_MS = 150  # from a request on an open connection to the first byte of its picture
FIRST_BYTE_SHARE = 0.99  # of the pictures come within that
PROBES_STALE = timedelta(hours=3)  # they are made every hour
MINIMUM_PROBES = 100  # of fewer, a single slow one is more than the hundredth that may be


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a number is as it should be; `is_error` tells an error from a warning."""

    passed: bool
    is_error: bool
    words: str


def judge_success_rate(completed: int, failed: int) -> Judgement:
    """Judges completed / (completed + failed)."""
    return _judge_rate(completed, failed, warning=SUCCESS_RATE_WARNING, error=SUCCESS_RATE_ERROR)


def judge_success_of_day(completed: int, failed: int) -> Judgement:
    """Judges the success rate of the last 24 hours, as alerts do."""
    return _judge_rate(completed, failed, warning=SUCCESS_OF_DAY_WARNING, error=SUCCESS_OF_DAY_ERROR)


def judge_health(completed: int, failed: int) -> Judgement:
    """Judges the success rate of the whole within `HEALTH_WINDOW`: a warning is degraded, an error unhealthy."""
    return _judge_rate(completed, failed, warning=HEALTH_DEGRADED, error=HEALTH_UNHEALTHY)


def _judge_rate(completed: int, failed: int, *, warning: float, error: float) -> Judgement:
    judged = completed + failed
    if judged == 0:
        return Judgement(True, False, "no image to judge")
    rate = completed / judged
    words = f"{completed} of {judged} images completed ({in_percent(rate)})"
    if judged < MINIMUM_SAMPLE:
        return Judgement(True, False, f"{words}; fewer than {MINIMUM_SAMPLE} are not judged")
    if rate < error:
        return Judgement(False, True, f"{words}, below {error:.0%}")
    if rate < warning:
        return Judgement(False, False, f"{words}, below {warning:.0%}")
    return Judgement(True, False, words)


def judge_queue_depth(depth: int) -> Judgement:
    """Judges the open jobs of priorities 1-5, those that somebody waits for."""
    words = f"{depth} urgent {'job is' if depth == 1 else 'jobs are'} in the queue"
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


def judge_first_bytes(share_in_time: float | None, probed: int) -> Judgement:
    """Judges the share of published URLs that answered within `FIRST_BYTE_MS`, of so many; None: none was timed."""
    if share_in_time is None:
        return Judgement(True, False, "no published URL was timed")
    words = f"{in_percent(share_in_time)} of {probed} URLs answer within {FIRST_BYTE_MS} ms"
    if probed < MINIMUM_PROBES:
        return Judgement(True, False, f"{words}; fewer than {MINIMUM_PROBES} are not judged")
    passed = share_in_time >= FIRST_BYTE_SHARE
    return Judgement(passed, False, words if passed else f"{words}, fewer than {FIRST_BYTE_SHARE:.0%}")


def judge_urls(probed: int, broken: int) -> Judgement:
    """Judges a sample of published URLs: one that does not give its picture is one too many."""
    words = f"{probed - broken} of {probed} probed URLs give their picture"
    return Judgement(broken == 0, broken > 0, words)


def judge_probes(age: timedelta) -> Judgement:
    """Judges how long ago published URLs were last probed: what they gave long ago says nothing of today."""
    words = f"published URLs were last probed {span(age)} ago"
    if age > PROBES_STALE:
        return Judgement(False, False, f"{words}, more than {span(PROBES_STALE)}")
    return Judgement(True, False, words)


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


def judge_refreshes(waiting: int, expired: int) -> Judgement:
    """Judges the refreshes that users asked for and no run came to, in the last hour."""
    words = f"users' refreshes that wait: {waiting}"
    if expired:
        return Judgement(False, False, f"{words}; no run came within the hour to {expired} others")
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


def judge_workers(leases: int, due: int, idle_for: timedelta | None) -> Judgement:
    """Judges how long work has been due while nobody had any in hand."""
    words = f"jobs in hand: {leases}, due: {due}"
    if idle_for is not None and idle_for > NO_WORKERS_ERROR:
        return Judgement(False, True, f"{words}; nobody has worked for {span(idle_for)}")
    return Judgement(True, False, words)


def judge_heartbeat(age: timedelta | None) -> Judgement:
    """Judges how long Dagster's daemon has been silent. Never heard is well: nobody relies on its sensors."""
    if age is None:
        return Judgement(True, False, "Dagster's daemon was not seen yet")
    words = f"Dagster's daemon was last seen {span(age)} ago"
    stale = age > HEARTBEAT_STALE
    return Judgement(not stale, stale, f"{words}, more than {span(HEARTBEAT_STALE)}" if stale else words)


def judge_switch(off_for: timedelta | None, comes_back_in: timedelta | None, percentage: int) -> Judgement:
    """Judges for how long frontends have been given no CDN URLs (None: they are, of a percentage of owners)."""
    if off_for is None:
        return Judgement(True, False, f"CDN URLs are given of {percentage} % of the owners")
    back = f"it comes back by itself in {span(comes_back_in)}" if comes_back_in else "until somebody switches it on"
    return Judgement(False, False, f"the CDN has been switched off for {span(off_for)}, {back}")


def judge_round_trip(milliseconds: float | None, problem: str | None) -> Judgement:
    """Judges whether a part answers."""
    if problem is not None:
        return Judgement(False, True, problem)
    return Judgement(True, False, f"answers in {milliseconds or 0:.1f} ms")


def judge_disk(used_share: float) -> Judgement:
    """Judges how full the disk of local stores is."""
    words = f"the disk is {used_share:.0%} full"
    if used_share > DISK_USED_ERROR:
        return Judgement(False, True, f"{words}, more than {DISK_USED_ERROR:.0%}")
    return Judgement(used_share <= DISK_USED_WARNING, False, words)


def judge_cache_hits(ratio: float | None) -> Judgement:
    """Judges the share of requests that the CDN answered from its cache; None: nobody can tell."""
    if ratio is None:
        return Judgement(True, False, "Cloudflare's figures are not configured")
    words = f"the CDN's cache answers {in_percent(ratio)} of the requests"
    passed = ratio >= CACHE_HIT_RATIO_INFO
    return Judgement(passed, False, words if passed else f"{words}, fewer than {CACHE_HIT_RATIO_INFO:.0%}")


def judge_storage_growth(bytes_before: int, bytes_now: int) -> Judgement:
    """Judges how much the stores have grown within a week."""
    words = f"the stores hold {bytes_now / 1e9:.1f} GB, {bytes_before / 1e9:.1f} GB a week ago"
    if bytes_before < STORAGE_GROWTH_FROM:
        return Judgement(True, False, words)
    growth = bytes_now / bytes_before - 1
    if growth > STORAGE_GROWTH_WARNING:
        return Judgement(False, False, f"{words}: {growth:+.0%}, more than {STORAGE_GROWTH_WARNING:.0%}")
    return Judgement(True, False, words)


def judge_cost(words: str, usd: float, budget_usd: float) -> Judgement:
    """Judges what a month costs at the present rate; `words` say how much of what."""
    passed = usd <= budget_usd
    return Judgement(passed, False, words if passed else f"{words}: more than the budget of {budget_usd:.2f} $")
