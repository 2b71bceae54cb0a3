"""`cdn-pipeline profile`: a profile on one screen."""

from collections.abc import Iterator, Sequence

import pydantic_core
from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.sections import Fact, add_row, as_text, counted, new_table, print_facts, print_lines, print_title
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.profile import ProfileStory, owner_of, tell_profile
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.observe.story import ImageStory, RenditionStory
from cdn_pipeline.observe.times import at, distance
from cdn_pipeline.observe.why import QueueState, why
from cdn_pipeline.settings import Settings

_IDS = 1  # the column of `_pictures` that has them, after the indent
_WORDS = {"profile_avatar": "avatar", "post_thumbnail": "post", "post_carousel": "  child"}


def show_profile(settings: Settings, console: Console, subject: str, *, as_json: bool) -> bool:
    """Shows the profile that is meant; returns whether anything is known of it."""
    with open_catalog(settings) as engine, snapshot(engine) as now:
        profile = tell_profile(now, INSTAGRAM, owner_of(now.connection, INSTAGRAM, subject))
    if as_json:
        print(pydantic_core.to_json(profile, indent=2).decode())  # noqa: T201  # unwrapped and without colour
    elif profile.is_known:
        _print(console, profile, has_provider=settings.has_provider)
    else:
        console.print(as_text(f"Nothing is known of {subject}: neither a profile nor a picture of one.", style="bold"))
        console.print(
            "A profile is known from the moment its row was read; `cdn-pipeline status` says how far that is."
        )
    return profile.is_known


def _print(console: Console, profile: ProfileStory, *, has_provider: bool) -> None:
    published = sum(bool(image.visible) for image in profile.images)
    print_facts(
        console,
        f"Profile {profile.owner_id}: {published:,} of {counted(len(profile.images), 'picture')} published",
        _facts(profile, has_provider=has_provider),
    )
    if not profile.images:
        return
    print_title(console, "Pictures")
    console.print(_pictures(profile))
    unfinished = _unfinished(profile, has_provider=has_provider)
    if unfinished:
        print_title(console, "What is not completed")
        for image, words in unfinished:
            print_lines(console, [image])
            console.print(Padding(as_text(words, style="yellow"), (0, 0, 0, 4)))
    print_title(console, "Visible now")
    print_lines(console, [largest.url for image in profile.images if (largest := _largest(image))] or ["nothing"])
    console.print()
    console.print("`cdn-pipeline explain IMAGE` tells a picture's story, `retry PROFILE` tries again what failed.")


def _facts(profile: ProfileStory, *, has_provider: bool) -> Iterator[Fact]:
    if profile.images:
        yield "shard", profile.images[0].shard
    yield "delivery", _delivery(profile)
    for erasure in profile.erasures:
        what = "the profile" if erasure.scope == "owner" else "a picture"
        words = f"{what} was erased {at(erasure.created_at, profile.now)} for {erasure.requested_by}: {erasure.state}"
        yield "erased", Text(f"{words} (reason: {erasure.reason})", style="yellow")
    if profile.provider:
        yield "provider", profile.provider.words(profile.now)
    else:
        yield "provider", "never asked" if has_provider else "not configured"
    for refresh in profile.refreshes:
        answer = refresh.answer or "waits for a run"
        yield "refresh", f"{answer}, requested {at(refresh.requested_at, profile.now)}"
    if not profile.refreshes:
        yield "refresh", "never requested"


def _delivery(profile: ProfileStory) -> Text:
    if profile.has_cdn_urls:
        return Text("the API answers CDN URLs")
    reason = "it is not among those that have CDN URLs" if profile.policy.is_on else "the CDN is switched off"
    return Text(f"the API answers legacy URLs: {reason}", style="yellow")


def _pictures(profile: ProfileStory) -> Table:
    """Two lines for each picture, so that all of it has room in 80 columns beside a whole id."""
    table = new_table("picture, image", "state, failure", "largest", "URL expires", numbers=("largest",))
    table.columns[_IDS].no_wrap = True  # they are copied
    for image in profile.images:
        largest = _largest(image)
        size = f"{largest.width}×{largest.height}\n{decimal(largest.file_size)}" if largest else None
        state = f"{why(INSTAGRAM, image).state}\n{_last_failure(image) or ''}"
        add_row(table, f"{_name(image)}\n{image.image_id}", state, size, _expiry(image))
    return table


def _name(image: ImageStory) -> str:
    taken = f" {image.taken_at:%Y-%m-%d}" if image.taken_at else ""
    return f"{_WORDS.get(image.source_type, image.source_type)}{taken}{' (removed)' if image.removed_at else ''}"


def _largest(image: ImageStory) -> RenditionStory | None:
    """Of the collection's own format."""
    own = [each for each in image.visible if each.format == INSTAGRAM.recipe.format]
    return max(own, key=lambda each: each.width * each.height, default=None)


def _expiry(image: ImageStory) -> str:
    expires_at = image.current.expires_at
    return distance(expires_at, image.now) if expires_at else "never"


def _last_failure(image: ImageStory) -> str | None:
    """What is wrong with it now, or what it was published after."""
    earlier = next((f"after {job.failure}" for job in image.jobs if job.failure), None)
    return str(image.failure) if image.failure else earlier


def _unfinished(profile: ProfileStory, *, has_provider: bool) -> Sequence[tuple[str, str]]:
    """The pictures that are not completed, and why."""
    reasons = [(image, why(INSTAGRAM, image, has_provider=has_provider)) for image in profile.images]
    return [
        (f"{_name(image).strip()} {image.image_id}: {reason.state}", reason.words)
        for image, reason in reasons
        if reason.state is not QueueState.COMPLETED
    ]
