"""What must hold after every step, and from every step to the next."""

import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind, Remedy
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.media.transcode import Rendition
from cdn_pipeline.queue.outcomes import EFFECTS, Outcome, Verdict
from cdn_pipeline.queue.states import STATUS_IN_HAND, ImageStatus, JobStatus, Stage
from cdn_pipeline.store.keys import path_of, rendition_key
from cdn_pipeline_tests.proof.parts import World, transcoded
from cdn_pipeline_tests.proof.snapshot import Row, Snapshot, Step, busy_after, busy_times, is_open

RecipeKey = tuple[str, int]


@dataclass(slots=True)
class Audit:
    """Judges snapshots. It remembers which pictures the source has shown of each image, in their order."""

    world: World
    recipes: dict[RecipeKey, Recipe]
    _shown: defaultdict[uuid.UUID, list[str]] = field(default_factory=lambda: defaultdict(list))

    def check(self, before: Snapshot, after: Snapshot, step: Step, now: datetime) -> None:
        """Raises AssertionError if a step left the catalog in a state that it must not be in."""
        for asset_id, image in after.images.items():
            if self._shown[asset_id][-1:] != [image["identity"]]:
                self._shown[asset_id].append(image["identity"])
            check_image_and_job(after, image)
            self._check_visible(after, image)
            self._check_better(before, after, image)
        for job in after.jobs.values():
            check_job(after, job, now)
        check_ends(after, step)
        check_counters(before, after, step, now)
        check_renditions(before, after, step)

    # -- what is visible --

    def _check_visible(self, after: Snapshot, image: Row) -> None:
        """Every visible object is in the store, whole, under its hash; all are of one original, and the placeholder."""
        visible = after.visible(image["id"])
        if not visible:
            assert image["placeholder"] is None
            return
        (sha256,) = {rendition["original_sha256"] for rendition in visible.values()}
        stored = self.world.stored()
        for made_by in {(each["recipe"], each["recipe_version"]) for each in visible.values()}:
            recipe = self.recipes[made_by]
            made = transcoded(self.world.source.pictures[sha256].data, recipe)
            assert image["placeholder"] == made.placeholder
            for rendition in made.renditions:
                row = visible.pop((recipe.format, rendition.size))
                assert (row["recipe"], row["recipe_version"]) == made_by, "sizes of one format by two recipes"
                assert row["path"] == path_of(_key(image, rendition, recipe))
                assert row["content_hash"] == rendition.sha256
                assert stored.get(_key(image, rendition, recipe)) == rendition.data, "visible without its object"
        assert not visible, "a size that no recipe makes"

    def _check_better(self, before: Snapshot, after: Snapshot, image: Row) -> None:
        """Nothing disappears, and what takes the place of a picture is not worse.

        Only what a rollout made goes when another picture takes the place of that which it was made of.
        """
        old, new = before.visible(image["id"]), after.visible(image["id"])
        own = {slot for slot in old if slot[0] == INSTAGRAM.recipe.format}
        assert own <= new.keys(), f"no longer visible: {own - new.keys()}"
        if not own:
            return
        had, has = (self.world.source.pictures[side[min(own)]["original_sha256"]] for side in (old, new))
        assert had != has or old.keys() <= new.keys(), f"no longer visible: {old.keys() - new.keys()}"
        if had.identity == has.identity:
            assert (has.rank, has.edition) >= (had.rank, had.edition), f"{has} in place of {had}"
        else:
            assert self._age(image, has.identity) < self._age(image, had.identity), f"{has} in place of {had}"

    def _age(self, image: Row, identity: str) -> int:
        """How many pictures ago the source last showed this one."""
        return self._shown[image["id"]][::-1].index(identity)


def _key(image: Row, rendition: Rendition, recipe: Recipe) -> str:
    owner, media = image["owner_id"], image["media_id"]
    return rendition_key(INSTAGRAM.key_prefix, owner, media, rendition.size, rendition.sha256, recipe.format)


# -- one image, one job --


def check_image_and_job(after: Snapshot, image: Row) -> None:
    """An image's status says what its job's does."""
    open_jobs = after.open_jobs(image["id"])
    assert len(open_jobs) <= 1
    status, kind = image["processing_status"], image["failure_kind"]
    in_hand = [STATUS_IN_HAND[Stage(job["stage"])] for job in open_jobs if job["status"] == JobStatus.PROCESSING]
    if in_hand or status in STATUS_IN_HAND.values():
        assert in_hand == [status]
        return
    match status:
        case ImageStatus.PENDING:
            assert open_jobs or FailureKind(kind).remedy is Remedy.FRESH_URL
        case ImageStatus.FAILED:
            assert not open_jobs
            assert FailureKind(kind).remedy is Remedy.PERMANENT
        case _:
            assert status == ImageStatus.COMPLETED
            assert not open_jobs
            assert kind is None
            assert image["original_identity"] == image["identity"]


def check_job(after: Snapshot, job: Row, now: datetime) -> None:
    """A job in hand has a run and a lease; a queued one follows its image; busy times are over."""
    image = after.images[job["asset_id"]]
    assert (job["status"] == JobStatus.PROCESSING) == (job["lease_until"] is not None)
    assert is_open(job) == (job["completed_at"] is None)
    if job["status"] == JobStatus.PROCESSING:
        assert job["run_id"] is not None
    if is_open(job) and job["rollout"] is not None:
        assert job["stage"] != Stage.DOWNLOAD, "a rollout that downloads"
    if job["status"] == JobStatus.QUEUED:
        assert (job["source_url"], job["deadline"]) == (image["source_url"], image["url_expires_at"])
        assert job["stage"] == Stage.DOWNLOAD or image["original_identity"] == image["identity"]
    times = busy_times(job)
    assert all(begin < end <= now for begin, end in times)
    assert all(earlier[1] < later[0] for earlier, later in pairwise(times))


def check_ends(after: Snapshot, step: Step) -> None:
    """No attempt ends the work on a URL that came while it was under way and is worth a try."""
    for job_id, url in step.tried.items():
        image = after.images[after.jobs[job_id]["asset_id"]]
        is_new = url != image["source_url"]
        if is_new and image["processing_status"] == ImageStatus.COMPLETED:
            assert image["original_rank"] >= image["rank"], "done, and a better picture not tried"
        if is_new and image["processing_status"] == ImageStatus.PENDING:
            assert after.open_jobs(image["id"]), "waits for a URL that it has"


# -- counters --


def check_counters(before: Snapshot, after: Snapshot, step: Step, now: datetime) -> None:
    """Attempts, retries, ends and busy times are those that the steps add up to."""
    assert before.images.keys() <= after.images.keys()
    assert before.jobs.keys() <= after.jobs.keys()
    for job_id, job in before.jobs.items():
        _check_one_job(job, after.jobs[job_id], step, now)
    claimed = {job.asset_id for job in step.claimed}
    reopened = {after.jobs[job_id]["asset_id"] for job_id in after.jobs.keys() - before.jobs.keys() if step.reopens}
    for asset_id, image in before.images.items():
        attempts: int = image["processing_attempts"]
        if asset_id in claimed:
            attempts += 1
        if asset_id in reopened or image["source_id"] in step.changed:
            attempts = 0
        for outcome in step.settled.values():
            if outcome.asset_id == asset_id:
                attempts = _attempts_after(attempts, outcome, before.jobs[outcome.job_id])
        assert after.images[asset_id]["processing_attempts"] == attempts


def _attempts_after(attempts: int, outcome: Outcome, job: Row) -> int:
    job_status, image_status = EFFECTS[outcome.verdict]
    gave_up_rollout = job["rollout"] is not None and job_status is JobStatus.FAILED  # the image stays completed
    if image_status is ImageStatus.COMPLETED or gave_up_rollout:
        return 0
    return max(attempts - 1, 0) if outcome.verdict is Verdict.RELEASED else attempts


def _check_one_job(before: Row, after: Row, step: Step, now: datetime) -> None:
    if not is_open(before):
        assert after == before, "a job that has ended changed"
        return
    outcome = step.settled.get(before["id"])
    assert is_open(after) or outcome is not None, "a job ended without an outcome"
    assert outcome is None or before["run_id"] == step.run_id, "an outcome of a job that another run has"
    assert before["id"] not in {job.job_id for job in step.claimed} or _was_due(before, now)
    # A run that slept begins anew when it renews its leases.
    goes_on = (after["status"], after["started_at"]) == (JobStatus.PROCESSING, before["started_at"])
    ended = before["status"] == JobStatus.PROCESSING and not goes_on
    assert busy_times(after) == (busy_after(before, now if outcome else None) if ended else busy_times(before))
    assert after["retry_count"] in _retries_after(before, after, outcome, step)


def _was_due(before: Row, now: datetime) -> bool:
    return before["status"] == JobStatus.QUEUED and before["held_at"] is None and before["next_attempt_at"] <= now


def _retries_after(before: Row, after: Row, outcome: Outcome | None, step: Step) -> set[int]:
    """What the count may be: a job that goes back to the start, for something new, begins to count again."""
    count: int = before["retry_count"]
    if outcome is None:
        return {count, 0} if step.changed else {count}
    job_status, _ = EFFECTS[outcome.verdict]
    started_over = after["status"] == JobStatus.QUEUED and job_status is not JobStatus.QUEUED
    if started_over or outcome.verdict is Verdict.ADVANCED:
        return {0}
    # Another picture starts the job over whatever the verdict; its URL is another one then.
    moved = after["source_url"] != before["source_url"]
    return {count + (outcome.verdict is Verdict.RETRYING)} | ({0} if moved else set())


def check_renditions(before: Snapshot, after: Snapshot, step: Step) -> None:
    """There is a row for every rendition of a settled outcome, and for no other."""
    had, has = ({(each["asset_id"], each["path"]) for each in side.renditions.values()} for side in (before, after))
    made = {(outcome.asset_id, each.path) for outcome in step.settled.values() for each in outcome.renditions}
    assert has == had | made
    assert len(after.renditions) == len(has)
