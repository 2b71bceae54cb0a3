"""What a failed attempt leads to: another attempt and when, a wait for a fresh URL, or the end."""

import random
from dataclasses import dataclass
from datetime import timedelta

from cdn_pipeline.collections import RetryPolicy
from cdn_pipeline.failures import FailureKind, ImageFailure, Remedy
from cdn_pipeline.queue.outcomes import Verdict


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on a failed attempt, the kind it is filed under, and the wait before the next attempt."""

    verdict: Verdict
    kind: FailureKind
    retry_in: timedelta = timedelta()


def decide(
    policy: RetryPolicy,
    failure: ImageFailure,
    retry_count: int,
    last_failure: FailureKind | None,
    *,
    url_lives: timedelta | None = None,
) -> Decision:
    """Decides by the kind's remedy.

    A 404 asks for a fresh URL once; when that gives 404 as well, the picture is gone, and gone again at the first 404
    of an operator's retry. A host's `Retry-After` is obeyed when it is longer than the ladder's delay, up to half of
    the time that the URL lives. `url_lives` is how long the source URL still answers (`None`: for ever): a retry that
    would come too late comes half-way to the end instead, and after the end the image waits for a fresh URL. A picture
    that still kills its worker when the ladder ends is not tried for ever.
    """
    kind = failure.kind
    if kind is FailureKind.SOURCE_URL_404 and last_failure in (FailureKind.SOURCE_URL_404, FailureKind.SOURCE_GONE):
        kind = FailureKind.SOURCE_GONE
    if kind.remedy is Remedy.PERMANENT:
        return Decision(Verdict.FAILED, kind)
    if kind.remedy is Remedy.FRESH_URL:
        return Decision(Verdict.WAITING, kind)
    if kind is last_failure is FailureKind.WORKER_DIED and retry_count >= len(policy.in_run + policy.later):
        return Decision(Verdict.FAILED, kind)
    delay = policy.delay(retry_count + 1) * random.uniform(1 - policy.jitter, 1 + policy.jitter)  # noqa: S311
    asked = timedelta(seconds=failure.retry_after_seconds or 0)
    delay = max(delay, asked if url_lives is None else min(asked, url_lives / 2))
    if url_lives is not None and delay > url_lives:
        if url_lives < policy.in_run[0]:
            return Decision(Verdict.WAITING, FailureKind.SOURCE_URL_EXPIRED)
        delay = url_lives / 2
    return Decision(Verdict.RETRYING, kind, delay)


def longest_wait_in_run(policy: RetryPolicy) -> timedelta:
    """How far ahead a run looks for retries before it calls a shard finished."""
    return policy.in_run[-1] * (1 + policy.jitter)
