"""Which of the pictures that a store has of an image is the one to show."""

import asyncio
import hashlib
import random
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, Recipe
from cdn_pipeline.queue.outcomes import NewRendition
from cdn_pipeline.queue.restoration import FoundImage, FoundRendition
from cdn_pipeline.queue.tombstones import UNKNOWN_IDENTITY
from cdn_pipeline.store.folder import FolderStore
from cdn_pipeline.store.keys import path_of, rendition_key
from cdn_pipeline.store.labels import Label
from cdn_pipeline.store.objects import ListedObject, ObjectStore
from cdn_pipeline.upkeep.inventory import Described, image_pages, images_of

OWNER = str(uuid.UUID(int=1))
START = datetime(2026, 1, 1, tzinfo=UTC)


def described(
    picture: str, size: str, observed: int | None, stored: int = 0, version: int = 1, recipe: Recipe = INSTAGRAM.recipe
) -> Described:
    """A rendition of a picture; times in hours."""
    sha256 = hashlib.sha256(f"{picture} {size} {version} {recipe.format}".encode()).hexdigest()
    rendition = NewRendition(
        size_name=size,
        format=recipe.format,
        width=1,
        height=1,
        file_size=1,
        content_hash=sha256,
        path=path_of(rendition_key("th/ig", OWNER, "avatar", size, sha256, recipe.format)),
        original_sha256=picture,
        recipe=recipe.name,
        recipe_version=version,
        encoder="encoder",
    )
    observed_at = None if observed is None else START + timedelta(hours=observed)
    identity = None if observed is None else f"file:{picture}"
    label = Label("instagram", OWNER, "profile_avatar", OWNER, "avatar", picture, identity, 1, observed_at)
    return Described(FoundRendition(rendition, START + timedelta(hours=stored)), label)


def both(picture: str, observed: int | None, **more: object) -> list[Described]:
    return [described(picture, size, observed, **more) for size in ("256", "512")]  # type: ignore[arg-type]


def only_image(found: Iterable[Described]) -> FoundImage:
    [image] = images_of(list(found), INSTAGRAM)
    return image


def paths(found: Iterable[Described]) -> frozenset[str]:
    return frozenset(each.path for each in found)


def test_the_picture_that_was_observed_last_is_shown_whenever_it_was_stored() -> None:
    earlier, later = both("A", 1, stored=9), both("B", 2, stored=3)
    image = only_image(earlier + later)
    assert (image.current, image.original.sha256, image.original.identity) == (paths(later), "B", "file:B")
    assert len(image.renditions) == 4


def test_of_one_sighting_what_was_stored_last_is_shown() -> None:
    assert only_image(both("A", 1, stored=2) + both("B", 1, stored=1)).current == paths(both("A", 1))


def test_without_a_time_in_the_label_the_time_of_the_object_tells() -> None:
    image = only_image(both("A", None, stored=2) + both("B", None, stored=1))
    assert (image.current, image.original.identity) == (paths(both("A", None)), UNKNOWN_IDENTITY)
    assert image.observed_at == START + timedelta(hours=2)


def test_a_whole_picture_is_shown_before_a_later_one_that_lacks_a_size() -> None:
    image = only_image([*both("A", 1), described("B", "512", 2)])
    assert (image.current, image.is_whole) == (paths(both("A", 1)), True)


def test_what_is_there_of_a_picture_is_shown_if_none_is_whole() -> None:
    image = only_image([described("A", "256", 1), described("B", "512", 2)])
    assert (image.current, image.is_whole) == (paths([described("B", "512", 2)]), False)


def test_of_a_size_the_later_version_is_shown() -> None:
    image = only_image([*both("A", 1), described("A", "512", 1, stored=1, version=2)])
    assert image.current == {described("A", "256", 1).path, described("A", "512", 1, version=2).path}


def test_a_rollout_is_shown_beside_the_picture_that_it_is_of_and_does_not_make_it_later() -> None:
    rolled_out = both("A", 3, recipe=AVIF_THUMBNAILS)
    assert only_image([*both("A", 1), *rolled_out]).current == paths(both("A", 1) + rolled_out)
    assert only_image([*both("A", 1), *rolled_out, *both("B", 2)]).current == paths(both("B", 2))


def test_what_the_catalog_had_judged_is_kept_and_not_shown() -> None:
    found = both("A", 1) + both("B", 2)
    [image] = images_of(found, INSTAGRAM, not_current=paths(both("B", 2)))
    assert (image.current, len(image.renditions)) == (paths(both("A", 1)), 4)
    assert images_of(found, INSTAGRAM, not_current=paths(found)) == []


stores = st.lists(
    st.builds(
        described,
        st.sampled_from("ABC"),
        st.sampled_from(["256", "512"]),
        st.none() | st.integers(0, 5),
        st.integers(0, 5),
        st.integers(1, 2),
        st.sampled_from(INSTAGRAM.recipes),
    ),
    min_size=1,
    unique_by=lambda each: each.path,
)


@given(found=stores, chance=st.randoms())
def test_one_picture_is_shown_once_in_each_size_in_whatever_order_it_is_found(
    found: Sequence[Described], chance: random.Random
) -> None:
    image = only_image(found)
    shown = [each for each in found if each.path in image.current]
    slots = [(each.found.rendition.size_name, each.found.rendition.format) for each in shown]
    chance.shuffle(reordered := list(found))
    assert only_image(reordered).current == image.current
    assert {each.label.original_sha256 for each in shown} == {image.original.sha256}
    assert len(slots) == len(set(slots))
    own = {
        picture: {
            each.found.rendition.size_name
            for each in found
            if each.label.original_sha256 == picture and each.found.rendition.recipe == INSTAGRAM.recipe.name
        }
        for picture in "ABC"
    }
    assert image.is_whole == any(sizes == {"256", "512"} for sizes in own.values())
    assert not image.is_whole or own[image.original.sha256] == {"256", "512"}


def test_every_image_comes_once_and_whole_from_a_listing_of_several_pages(tmp_path: Path) -> None:
    keys = {
        rendition_key("th/ig", str(uuid.UUID(int=owner)), media, size, hashlib.sha256(bytes([n])).hexdigest(), "webp")
        for owner in range(120)
        for media in ("avatar", "a")
        for size in ("256", "512")
        for n in range(3)
    }
    for key in [*keys, "th/ig/not ours", "th/igloo/x"]:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).touch()
    images = asyncio.run(images_in(FolderStore(tmp_path, tmp_path.as_uri())))
    assert sorted(len(image) for image in images) == [6] * 240
    assert all(len({entry.key.rsplit("/", 2)[0] for entry in image}) == 1 for image in images)
    assert {entry.key for image in images for entry in image} == keys


async def images_in(store: ObjectStore) -> list[list[ListedObject]]:
    return [image async for page in image_pages(store, INSTAGRAM) for image in page]
