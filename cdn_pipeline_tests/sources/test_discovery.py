from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cdn_pipeline.sources.discovery import (
    CLOCK_TOLERANCE,
    MAX_CANDIDATES,
    Change,
    ImageKey,
    ImageReference,
    KnownImage,
    Sighting,
    compare,
    is_alive,
    rank_candidates,
)
from cdn_pipeline.sources.instagram import SourceUrl

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEY = ImageKey("profile_avatar", "1", "avatar")


def url(name: str = "a", *, identity: str = "A", rank: int = 1000, hours: float | None = 48) -> SourceUrl:
    return SourceUrl(f"https://x/{name}", identity, rank, None if hours is None else NOW + timedelta(hours=hours))


def seen(*candidates: SourceUrl, hours_ago: float = 0) -> ImageReference:
    return ImageReference(KEY, "owner", "00", None, candidates, NOW - timedelta(hours=hours_ago))


def known(*candidates: SourceUrl, hours_ago: float = 1, downloaded: bool = True) -> KnownImage:
    best = candidates[0]
    return KnownImage(
        identity=best.identity,
        rank=best.rank,
        candidates=candidates,
        observed_at=NOW - timedelta(hours=hours_ago),
        original_identity=best.identity if downloaded else None,
        original_rank=best.rank if downloaded else None,
        waiting=False,
        failed=False,
        version="1",
    )


def after(sighting: Sighting, before: KnownImage | None) -> KnownImage:
    """What the catalog knows once the sighting has been recorded."""
    if before is not None and sighting.change in (Change.UNCHANGED, Change.OUTDATED):
        return before
    observed_at = sighting.reference.observed_at
    return KnownImage(
        identity=sighting.best.identity,
        rank=sighting.best.rank,
        candidates=sighting.candidates,
        observed_at=max(observed_at, before.observed_at) if before else observed_at,
        original_identity=before.original_identity if before else None,
        original_rank=before.original_rank if before else None,
        waiting=(before.waiting if before else not sighting.opens_job) and not sighting.opens_job,
        failed=before.failed and sighting.change is not Change.CHANGED if before else False,
        version="2",
    )


# -- the table --


@pytest.mark.parametrize(
    ("reference", "image", "change", "opens_job"),
    [
        (seen(url()), None, Change.NEW, True),
        (seen(url(hours=None)), None, Change.NEW, True),
        (seen(url(hours=-2)), None, Change.NEW, False),
        (seen(url("b", identity="B")), known(url()), Change.CHANGED, True),
        (seen(url("b", identity="B", hours=-2)), known(url()), Change.CHANGED, False),
        (seen(url("b", identity="B"), hours_ago=1), known(url()), Change.OUTDATED, False),
        (seen(url("b", identity="B"), hours_ago=2), known(url()), Change.OUTDATED, False),
        (seen(url("b", rank=2000)), known(url()), Change.CHANGED, True),
        (seen(url("b", rank=2000), hours_ago=2), known(url()), Change.CHANGED, True),
        (seen(url("b", rank=2000, hours=-2)), known(url(hours=-3)), Change.CHANGED, False),
        (seen(url("b", rank=2000)), known(url(), downloaded=False), Change.RESIGNED, False),
        (seen(url("b", rank=2000)), replace(known(url()), failed=True), Change.RESIGNED, False),
        (seen(url("b", identity="B")), replace(known(url()), failed=True), Change.CHANGED, True),
        (seen(url("b", hours=96)), known(url()), Change.RESIGNED, False),
        (seen(url("b", hours=96), hours_ago=9), known(url()), Change.RESIGNED, False),
        (seen(url("b", hours=24)), known(url()), Change.UNCHANGED, False),
        (seen(url("b", rank=500)), known(url()), Change.RESIGNED, False),
        (seen(url()), known(url()), Change.UNCHANGED, False),
        (seen(url(), hours_ago=9), known(url()), Change.UNCHANGED, False),
    ],
)
def test_what_a_sighting_means(
    reference: ImageReference, image: KnownImage | None, change: Change, opens_job: bool
) -> None:
    sighting = compare(reference, image, NOW)
    assert (sighting.change, sighting.opens_job) == (change, opens_job)


@pytest.mark.parametrize(
    ("fresh", "opens_job"),
    [(url("b", hours=96), True), (url("b", hours=24), False), (url(), False), (url("b", hours=-2), False)],
    ids=["a later expiry", "an earlier expiry", "the same URL", "a dead URL"],
)
def test_an_image_that_waits_reopens_only_on_a_fresh_url(fresh: SourceUrl, opens_job: bool) -> None:
    assert compare(seen(fresh), replace(known(url()), waiting=True), NOW).opens_job is opens_job


def test_of_one_expiry_the_later_observation_wins() -> None:
    """A URL that was stored mangled heals when the same one is stored whole."""
    waiting = replace(known(url("mangled")), waiting=True)
    healed = compare(seen(url("whole")), waiting, NOW)
    assert (healed.change, healed.best.url, healed.opens_job) == (Change.RESIGNED, "https://x/whole", True)
    assert compare(seen(url("older"), hours_ago=2), waiting, NOW).change is Change.UNCHANGED


def test_a_url_that_lost_its_expiry_gives_way_to_a_signed_one_and_never_takes_its_place() -> None:
    cut_off = url("cut off", hours=None)
    assert compare(seen(url("whole")), known(cut_off), NOW).best.url == "https://x/whole"
    assert compare(seen(cut_off), known(url("whole")), NOW).change is Change.UNCHANGED
    assert compare(seen(cut_off), known(url("dead", hours=-2)), NOW).best == cut_off


def test_a_fallback_of_another_picture_never_becomes_the_image_by_its_rank() -> None:
    image = known(url(rank=500, hours=10), url("other", identity="B", rank=400, hours=90))
    sighting = compare(seen(url("again", rank=300, hours=50)), image, NOW + timedelta(hours=12))
    assert (sighting.change, sighting.best.identity) == (Change.RESIGNED, "A")


def test_a_better_url_that_was_tried_in_vain_is_not_tried_again_until_it_is_fresh() -> None:
    image = replace(known(url("hd", rank=2000), url("sd", rank=500)), original_rank=500)
    assert compare(seen(url("hd", rank=2000)), image, NOW).change is Change.UNCHANGED
    assert compare(seen(url("hd2", rank=2000, hours=96)), image, NOW).change is Change.CHANGED


# -- candidates --


def test_candidates_come_best_rank_first_and_dead_ones_only_if_all_are_dead() -> None:
    best, good, dead = url("best", rank=3, hours=2), url("good", rank=2, hours=2), url("dead", rank=4, hours=-2)
    assert rank_candidates([good, dead, best], NOW) == (best, good)
    assert rank_candidates([dead], NOW) == (dead,)


def test_clocks_may_differ_a_little() -> None:
    tolerance = CLOCK_TOLERANCE.total_seconds() / 3600
    assert is_alive(url(hours=-tolerance + 0.1), NOW)
    assert not is_alive(url(hours=-tolerance), NOW)


urls = st.builds(
    url,
    st.sampled_from("abcdefgh"),
    identity=st.sampled_from("AB"),
    rank=st.sampled_from([150, 640, 1080]),
    hours=st.none() | st.sampled_from([-5, -1.5, 5, 20, 100]),
)
url_lists = st.lists(urls, min_size=1, max_size=5, unique_by=lambda each: each.url)
references = st.builds(
    lambda candidates, hours_ago: seen(*candidates, hours_ago=hours_ago), url_lists, st.integers(0, 5)
)


@st.composite
def images(draw: st.DrawFn) -> KnownImage:
    """An image as the catalog may know it: recorded at some time, and downloaded or not since."""
    image = after(compare(draw(references), None, NOW - timedelta(hours=draw(st.integers(0, 30)))), None)
    downloaded = draw(st.sampled_from([None, *image.candidates]))
    if downloaded:
        image = replace(image, original_identity=image.identity, original_rank=downloaded.rank)
    return replace(image, waiting=draw(st.booleans()), failed=False)


@given(url_lists)
def test_candidates_are_few_distinct_and_ordered(candidates: list[SourceUrl]) -> None:
    ranked = rank_candidates(candidates, NOW)
    assert 1 <= len(ranked) <= MAX_CANDIDATES
    assert set(ranked) <= set(candidates)
    assert [each.rank for each in ranked] == sorted((each.rank for each in ranked), reverse=True)
    assert len({(each.identity, each.rank) for each in ranked}) == len(ranked)
    assert rank_candidates(ranked, NOW) == ranked
    if any(is_alive(each, NOW) for each in candidates):
        assert all(is_alive(each, NOW) for each in ranked)


@given(references, st.none() | images())
def test_a_second_look_finds_nothing_new(reference: ImageReference, image: KnownImage | None) -> None:
    first = compare(reference, image, NOW)
    again = compare(reference, after(first, image), NOW)
    assert again.change is (Change.OUTDATED if first.change is Change.OUTDATED else Change.UNCHANGED)
    assert not again.opens_job


@given(references, images())
def test_an_older_observation_never_brings_another_picture(reference: ImageReference, image: KnownImage) -> None:
    assume(reference.observed_at <= image.observed_at)
    assert compare(reference, image, NOW).best.identity == image.identity


@given(references, images())
def test_signing_again_never_opens_a_job_for_a_published_image(reference: ImageReference, image: KnownImage) -> None:
    published = replace(image, waiting=False, original_identity=image.identity, original_rank=image.rank)
    sighting = compare(reference, published, NOW)
    if sighting.opens_job:
        other_picture = sighting.best.identity != image.identity
        assert other_picture or sighting.best.rank > image.rank
        assert sighting.change is Change.CHANGED


@given(references, images())
def test_a_worse_rank_never_takes_the_place_of_a_living_better_one(
    reference: ImageReference, image: KnownImage
) -> None:
    sighting = compare(reference, image, NOW)
    if sighting.best.identity == image.identity and is_alive(image.candidates[0], NOW):
        assert sighting.best.rank >= image.rank


@given(references, images())
def test_the_later_expiry_of_a_picture_is_never_lost(reference: ImageReference, image: KnownImage) -> None:
    sighting = compare(reference, image, NOW)
    assume(sighting.best.identity == image.identity)
    same = [
        each for each in image.candidates if (each.identity, each.rank) == (sighting.best.identity, sighting.best.rank)
    ]
    for each in same:
        if each.expires_at and sighting.best.expires_at:
            assert sighting.best.expires_at >= each.expires_at


@given(references, st.none() | images())
def test_no_job_is_opened_for_a_dead_url(reference: ImageReference, image: KnownImage | None) -> None:
    sighting = compare(reference, image, NOW)
    assert sighting.alive == is_alive(sighting.best, NOW)
    assert sighting.alive or not sighting.opens_job


@given(references, images())
def test_a_failed_image_is_reopened_by_another_picture_alone(reference: ImageReference, image: KnownImage) -> None:
    sighting = compare(reference, replace(image, failed=True, waiting=False), NOW)
    if sighting.opens_job:
        assert sighting.best.identity != image.identity
