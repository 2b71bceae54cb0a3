"""Why an image is or is not due, in a sentence: what the due query sees, told to a person."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.story import ImageStory, JobStory
from cdn_pipeline.observe.times import at, clock
from cdn_pipeline.queue.states import ImageStatus, JobStatus


class QueueState(StrEnum):
    """Where an image is in the queue, or out of it."""

    DUE = "due"
    IN_HAND = "in hand"
    ABANDONED = "abandoned"  # by a run that is gone
    ON_HOLD = "on hold"
    BEHIND_HOST = "behind its host"  # whose breaker is open
    RETRY_LATER = "retry later"
    UNKNOWN_RECIPE = "unknown recipe"
    WAITING = "waits for a URL"
    FAILED = "failed"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Why:
    """Where an image is, and why it is or is not due, in a sentence."""

    state: QueueState
    words: str

    @property
    def due(self) -> bool:
        """Whether a run that does every stage would claim it now."""
        return self.state is QueueState.DUE


def why(collection: Collection, story: ImageStory, *, has_provider: bool = True) -> Why:
    """Says why the image is or is not due now; `has_provider`: and whether somebody is asked for fresh URLs."""
    if story.open_job is not None:
        return _of_open_job(collection, story, story.open_job)
    if story.status is ImageStatus.COMPLETED:
        return Why(QueueState.COMPLETED, _completed(story))
    if story.status is ImageStatus.FAILED:
        return Why(QueueState.FAILED, f"Failed for good: {_with_advice(story.failure, story.detail)}")
    no_provider = "" if has_provider else " No provider configured: only its source row can bring one."
    return Why(QueueState.WAITING, _waiting(story) + no_provider)


def _of_open_job(collection: Collection, story: ImageStory, job: JobStory) -> Why:
    if job.status is JobStatus.PROCESSING:
        return _in_hand(story, job)
    if job.held_at is not None:
        return Why(QueueState.ON_HOLD, _on_hold(story, job))
    if job.due:
        since = max(job.opened_at, job.next_attempt_at)
        return Why(QueueState.DUE, f"Due since {at(since, story.now)}: {_next_step(story, job)}.")
    if job.rollout is not None and job.rollout not in [recipe.name for recipe in collection.recipes]:
        words = f"Not due for this version of the code, which does not know the recipe {job.rollout}."
        return Why(QueueState.UNKNOWN_RECIPE, words)
    if job.host_shut_at and job.host_asked_at and job.next_attempt_at <= job.host_asked_at:
        return Why(QueueState.BEHIND_HOST, _behind_host(story, job, job.host_shut_at, job.host_asked_at))
    retry = f": retry {job.retry_count} after {job.failure}" if job.failure else ""
    return Why(QueueState.RETRY_LATER, f"Next attempt {at(job.next_attempt_at, story.now)}{retry}.")


def _in_hand(story: ImageStory, job: JobStory) -> Why:
    run = f"run {job.run_id} on {job.worker_id}"
    if not job.run_lives:
        words = f"Abandoned by {run}, which is gone: {_next_run(story)} takes it back before anything else."
        return Why(QueueState.ABANDONED, words)
    lease = f", whose lease is good until {clock(job.lease_until)}" if job.lease_until else ""
    return Why(QueueState.IN_HAND, f"In hand of {run}{lease}.")


def _on_hold(story: ImageStory, job: JobStory) -> str:
    since = at(job.held_at or job.opened_at, story.now)
    if job.rollout_paused:
        return f"On hold since {since}: the rollout of {job.rollout} is paused; `{_resume(job)}` goes on with it."
    return f"On hold since {since}; `cdn-pipeline queue restore` lets it go."


def _behind_host(story: ImageStory, job: JobStory, shut_at: datetime, asked_at: datetime) -> str:
    return (
        f"Behind its host: {job.host} is left alone since {at(shut_at, story.now)} and is asked again "
        f"{at(asked_at, story.now)}, by one image at first."
    )


def _resume(job: JobStory) -> str:
    return f"cdn-pipeline rollout {job.rollout} --resume"


def _next_step(story: ImageStory, job: JobStory) -> str:
    purpose = f", for the rollout of {job.rollout}" if job.rollout else ""
    return f"{_next_run(story)} takes it up at {job.stage}, priority {job.priority}{purpose}"


def _next_run(story: ImageStory) -> str:
    return f"the next run of shard {story.shard}"


def _waiting(story: ImageStory) -> str:
    removed = f" Its source row was missing {at(story.removed_at, story.now)}." if story.removed_at else ""
    expires_at = story.current.expires_at
    expired = f"expired {at(expires_at, story.now)}" if expires_at and expires_at <= story.now else ""
    if story.failure is None or (expired and story.failure is FailureKind.SOURCE_URL_EXPIRED):
        reason = f"{expired or 'is not to be tried again'}.{_advice(FailureKind.SOURCE_URL_EXPIRED)}"
    else:
        reason = f"gave {_with_advice(story.failure, story.detail)}"
    return f"Waits for a fresh URL: the present one {reason}{removed}"


def _completed(story: ImageStory) -> str:
    completed = f"Completed {at(story.completed_at, story.now)}" if story.completed_at else "Completed"
    last = story.jobs[0] if story.jobs else None
    if last is None or last.rollout is None or last.status is not JobStatus.FAILED:
        return f"{completed}: nothing to do."
    return f"{completed}, but the rollout of {last.rollout} failed: {_with_advice(last.failure, last.detail)}"


def failure_words(kind: FailureKind | None, detail: str | None) -> str:
    """A kind of failure with its detail."""
    return f"{kind or 'no reason given'}{f' ({detail})' if detail else ''}"


def _with_advice(kind: FailureKind | None, detail: str | None) -> str:
    return f"{failure_words(kind, detail)}.{_advice(kind)}"


def _advice(kind: FailureKind | None) -> str:
    return f" Advice: {kind.advice}" if kind else ""
