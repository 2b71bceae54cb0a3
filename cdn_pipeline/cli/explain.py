"""`cdn-pipeline explain`: an image's whole story on a terminal."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.sections import (
    Fact,
    add_row,
    as_text,
    counted,
    new_table,
    print_facts,
    print_lines,
    print_title,
    shortened,
    value_width,
)
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.lookup import MOST_IMAGES, Reading, find_images
from cdn_pipeline.observe.provider import ProviderAnswer, provider_answers
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.observe.story import ImageStory, JobStory, UrlStory, tell_stories
from cdn_pipeline.observe.times import at, clock, distance
from cdn_pipeline.observe.why import QueueState, Why, failure_words, why
from cdn_pipeline.queue.states import JobStatus
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.instagram import rank_in_words

_JOBS_SHOWN = 5  # of an image that was fetched often; --verbose shows all

_ROOM_FOR_DATES = 92  # columns

_STYLES = {
    QueueState.DUE: "cyan",
    QueueState.IN_HAND: "cyan",
    QueueState.COMPLETED: "green",
    QueueState.FAILED: "red",
    QueueState.ABANDONED: "red",
}
_OTHER_STYLE = "yellow"


def explain_images(settings: Settings, console: Console, subject: str, *, every: bool, verbose: bool) -> bool:
    """Tells the story of the image that is meant, or a table of several; returns whether any was found."""
    with open_catalog(settings) as engine, snapshot(engine) as now:
        found = find_images(now.connection, INSTAGRAM, subject)
        stories = tell_stories(now, INSTAGRAM, found.image_ids)
        answers = provider_answers(now.connection, INSTAGRAM, [story.owner_id for story in stories])
    if not stories:
        _say_nothing_found(console, subject, found.readings)
        return False
    if len(stories) > 1:
        _print_table(console, stories, found.readings[0])
    if len(stories) == 1 or every:
        for story in stories:
            _Teller(console, verbose, answers, has_provider=settings.has_provider).tell(story)
    return True


def _say_nothing_found(console: Console, subject: str, readings: Sequence[Reading]) -> None:
    console.print(as_text(f"No image is known by {shortened(subject, console.width - 24)}", style="bold"))
    console.print("It was looked for as")
    print_lines(console, (f"- {reading.meaning}" for reading in readings))
    console.print(
        "Try the id of its owner or its post, or its source URL. An image is known from the moment its source row was "
        "read; `cdn-pipeline status` says how far that is."
    )


def _print_table(console: Console, stories: Sequence[ImageStory], reading: Reading) -> None:
    first = "The first " if len(stories) == MOST_IMAGES else ""
    print_title(console, f"{first}{counted(len(stories), 'image')}, found by {reading.meaning}")
    columns = ["image", "what", "state", "visible", "taken"][: None if console.width >= _ROOM_FOR_DATES else -1]
    table = new_table(*columns, numbers=("visible",))
    for story in stories:
        reason = why(INSTAGRAM, story)
        state = as_text(reason.state, style=_style(reason))
        taken = f"{story.taken_at:%Y-%m-%d}" if story.taken_at else None
        cells = (str(story.image_id), story.source_type, state, len(story.visible), taken)
        add_row(table, *cells[: len(columns)])
    console.print(table)
    console.print()
    console.print("`cdn-pipeline explain IMAGE` tells one's story, `--all` those of all.")


def _style(reason: Why) -> str:
    return _STYLES.get(reason.state, _OTHER_STYLE)


class _Teller:
    """Tells stories on a console, section by section."""

    def __init__(
        self, console: Console, verbose: bool, answers: Mapping[str, ProviderAnswer], *, has_provider: bool
    ) -> None:
        self._console = console
        self._verbose = verbose
        self._answers = answers
        self._has_provider = has_provider

    def tell(self, story: ImageStory) -> None:
        reason = why(INSTAGRAM, story, has_provider=self._has_provider)
        print_title(self._console, f"{story.source_type} {story.image_id}: {reason.state}")
        self._console.print(as_text(reason.words, style=_style(reason)))
        if reason.state is QueueState.FAILED:
            self._console.print("To try it again all the same:", highlight=False)
            print_lines(self._console, [f"cdn-pipeline retry {story.image_id}"])
        print_facts(self._console, "What it is", _nature(story))
        print_facts(self._console, "Where it can be had", self._sources(story))
        print_facts(self._console, "Stored original", _original(story))
        print_facts(self._console, "Jobs, newest first", self._jobs(story, reason.words))
        self._tell_renditions(story)
        self._tell_visibility(story)
        if self._verbose:
            print_title(self._console, "Source URLs in full")
            urls = [story.current.url, *(fallback.url for fallback in story.fallbacks), *story.earlier_urls]
            print_lines(self._console, urls)

    def _sources(self, story: ImageStory) -> Iterator[Fact]:
        current = story.current
        yield "URL", shortened(current.url, value_width(self._console))
        yield "picture", _identity(current.identity)
        yield "rank", rank_in_words(current.rank)
        yield "lifetime", _expiry(current, story)
        yield "observed", f"{at(story.observed_at, story.now)}, last checked {distance(story.last_checked, story.now)}"
        if answer := self._answers.get(story.owner_id):
            yield "provider", answer.words(story.now)
        if not story.seen_alive:
            yield "", Text("arrived dead: no URL of this picture was alive when we first saw it", style="yellow")
        if story.removed_at:
            missing = f"its source row was missing {at(story.removed_at, story.now)}; what is published stays"
            yield "removed", Text(missing, style="yellow")
        for fallback in story.fallbacks:
            yield "else", shortened(fallback.url, value_width(self._console))
            yield "", f"{rank_in_words(fallback.rank)}; {_expiry(fallback, story)}"
        for url in story.earlier_urls:
            yield "earlier", shortened(url, value_width(self._console))

    def _tell_visibility(self, story: ImageStory) -> None:
        print_title(self._console, "Visible now")
        if story.visible:
            print_lines(self._console, (rendition.url for rendition in story.visible))
        else:
            self._console.print("  nothing")

    def _jobs(self, story: ImageStory, told: str) -> Iterator[Fact]:
        """The jobs' facts; an advice that was `told` is not told again."""
        recent = [job for job in story.jobs if not job.archived][:_JOBS_SHOWN]
        shown = story.jobs if self._verbose else recent
        for job in shown:
            yield from _job(job, story)
            if job.failure and job.failure.advice not in told:
                yield "", f"Advice: {job.failure.advice}"
                told += job.failure.advice
        if not story.jobs:
            yield "", "none"
        if len(shown) < len(story.jobs):
            yield "", f"and {counted(len(story.jobs) - len(shown), 'earlier one')}: --verbose"

    def _tell_renditions(self, story: ImageStory) -> None:
        if not story.renditions:
            return
        print_title(self._console, "Renditions")
        table = new_table("size", "format", "pixels", "bytes", "recipe", "state", "since", numbers=("pixels", "bytes"))
        for each in story.renditions:
            pixels, recipe = f"{each.width}×{each.height}", f"{each.recipe} v{each.recipe_version}"
            since = distance(each.since, story.now)
            add_row(table, each.size_name, each.format, pixels, each.file_size, recipe, each.state, since)
        self._console.print(table)


def _nature(story: ImageStory) -> Iterator[Fact]:
    yield "owner", story.owner_id
    yield "source row", f"{story.source_type} {story.source_id}"
    yield "medium", story.media_id
    yield "shard", story.shard
    if story.taken_at:
        yield "taken", at(story.taken_at, story.now)
    yield "first seen", at(story.first_seen_at, story.now)


def _identity(identity: str) -> str:
    kind, _, name = identity.partition(":")
    if kind == "pk":
        return f"Instagram's medium {name}"
    if kind == "file":
        return f"the file {name}"
    return "known by its whole URL alone"


def _expiry(url: UrlStory, story: ImageStory) -> str:
    if url.expires_at is None:
        return "never, as far as the URL tells"
    return f"{'expired' if url.expires_at <= story.now else 'expires'} {at(url.expires_at, story.now)}"


def _original(story: ImageStory) -> Iterator[Fact]:
    original = story.original
    if original is None:
        yield "", "none yet"
        return
    pixels = f"{original.width}×{original.height} px, " if original.width and original.height else ""
    yield "SHA-256", original.sha256
    yield "bytes", f"{original.format}, {pixels}{decimal(original.file_size)}"
    if original.identity == story.current.identity:
        yield "of", f"the present picture, {rank_in_words(original.rank)}"
    else:
        yield "of", Text(f"an earlier picture: {_identity(original.identity)}", style="yellow")


def _job(job: JobStory, story: ImageStory) -> Iterator[Fact]:
    purpose = f"{job.job_type}{' (forced)' if job.force else ''}{f' of {job.rollout}' if job.rollout else ''}"
    stage = "" if job.status is JobStatus.COMPLETED else f", at {job.stage}"
    yield job.status, f"{purpose}, priority {job.priority}{stage}, {counted(job.attempts, 'attempt')}"
    yield "", f"opened {at(job.opened_at, story.now)}"
    if job.first_started_at:
        ended = f", ended {clock(job.ended_at)}" if job.ended_at else ""
        yield "", f"started {clock(job.first_started_at)}{ended}"
    if job.run_id:
        yield "", f"run {job.run_id} on {job.worker_id}"
    if work := _work(job):
        yield "", work
    if job.failure:
        yield "", Text(failure_words(job.failure, job.detail), style="yellow")


def _work(job: JobStory) -> str:
    stages = (("download", job.download_ms), ("transcode", job.transcode_ms), ("upload", job.upload_ms))
    amounts = (("in", job.bytes_in), ("out", job.bytes_out))
    times = [f"{stage} {milliseconds:,} ms" for stage, milliseconds in stages if milliseconds is not None]
    return ", ".join(times + [f"{decimal(count)} {way}" for way, count in amounts if count is not None])
