"""Inventory: what the stores say by themselves, image by image, for whoever has lost the catalog.

Every rendition is described by its label (`store.labels`); what an old label does not say is read from the object. Of
an image's pictures the one that was observed last is current, and of two made of one sighting what was stored last: a
store that was itself restored has new times, but the labels that it had.
"""

import hashlib
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import ImageFailure
from cdn_pipeline.media.decode import open_checked
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.queue.outcomes import NewRendition
from cdn_pipeline.queue.restoration import FoundImage, FoundOriginal, FoundRendition
from cdn_pipeline.queue.tombstones import UNKNOWN_IDENTITY
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline.sources.discovery import ImageKey
from cdn_pipeline.store.keys import original_key, path_of, rendition_named, sha256_of
from cdn_pipeline.store.labels import Label, RenditionLabel
from cdn_pipeline.store.objects import ListedObject, ObjectHead, ObjectMissing, ObjectStore
from cdn_pipeline.upkeep.requests import some_at_once

_MAX_IDENTITY, _MAX_RECIPE, _MAX_ENCODER, _MAX_FORMAT = 200, 40, 100, 10  # characters, in the catalog
_MAX_RANK = 2**31 - 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Described:
    """A rendition in the store, and what its label says."""

    found: FoundRendition
    label: Label
    placeholder: str | None = None

    @property
    def path(self) -> str:
        """Its CDN path."""
        return self.found.rendition.path

    @property
    def order(self) -> tuple[datetime, datetime, str]:
        """Later is more current; of the same time, always the same one."""
        return self.label.observed_at or self.found.stored_at, self.found.stored_at, self.path


@dataclass(frozen=True, slots=True)
class Undescribed:
    """An object that does not say what it is, or not the truth."""

    key: str
    reason: str


async def image_pages(store: ObjectStore, collection: Collection) -> AsyncIterator[list[list[ListedObject]]]:
    """The renditions under the collection's prefix, image by image, in pages of about a thousand.

    An image whose renditions end a page comes with the next one, so that each comes once.
    """
    started: dict[tuple[str, str], list[ListedObject]] = {}
    async for page in store.pages(collection.key_prefix):
        images: defaultdict[tuple[str, str], list[ListedObject]] = defaultdict(list, started)
        last: tuple[str, str] | None = None
        for entry in page:
            if name := rendition_named(collection.key_prefix, entry.key):
                last = name.owner_id, name.media_id
                images[last].append(entry)
        started = {last: images.pop(last)} if last else {}
        yield list(images.values())
    yield list(started.values())


async def describe(
    store: ObjectStore, collection: Collection, entries: Iterable[ListedObject]
) -> tuple[list[Described], list[Undescribed]]:
    """What these renditions are; those that have vanished meanwhile are left out.

    Raises:
        StoreUnavailable: the store fails.
    """

    async def look_at(entry: ListedObject) -> Described | Undescribed | None:
        try:
            return await _describe(store, collection, entry)
        except (ValueError, ImageFailure) as error:
            return Undescribed(entry.key, str(error))
        except ObjectMissing:
            return None

    found = await some_at_once(look_at(entry) for entry in entries)
    described = [each for each in found if isinstance(each, Described)]
    return described, [each for each in found if isinstance(each, Undescribed)]


async def _describe(store: ObjectStore, collection: Collection, entry: ListedObject) -> Described | None:
    head = await store.head(entry.key)
    if head is None:
        return None
    label, name = RenditionLabel.read(head.metadata), rendition_named(collection.key_prefix, entry.key)
    assert name is not None  # the listing has no others
    _require_of(collection, label.image)
    if (label.image.owner_id, label.image.media_id, label.size) != (name.owner_id, name.media_id, name.size):
        raise ValueError("its key names another image or size than its metadata")
    sha256, width, height = label.sha256, label.width, label.height
    if sha256 is None or width is None or height is None:
        data = await store.get(entry.key)
        sha256 = hashlib.sha256(data).hexdigest()
        width, height = open_checked(data).size
    if not sha256.startswith(name.hash_digits):
        raise ValueError("its bytes are not those that its key names")
    rendition = NewRendition(
        size_name=name.size,
        format=name.extension,
        width=width,
        height=height,
        file_size=head.size,
        content_hash=sha256,
        path=path_of(entry.key),
        original_sha256=label.image.original_sha256,
        recipe=label.recipe[:_MAX_RECIPE],
        recipe_version=label.recipe_version,
        encoder=(label.encoder or "unknown")[:_MAX_ENCODER],
    )
    return Described(FoundRendition(rendition, entry.last_modified), label.image, label.placeholder)


def _require_of(collection: Collection, label: Label) -> None:
    """Raises ValueError unless the label is of the collection and fit for its catalog."""
    if label.collection != collection.name:
        raise ValueError(f"it is of the collection {label.collection!r}")
    if label.source_type not in collection.priorities:
        raise ValueError(f"{collection.name} has no {label.source_type!r}")
    if len(label.identity or "") > _MAX_IDENTITY or (label.rank or 0) > _MAX_RANK:
        raise ValueError("its identity or rank is too long")
    original_key(label.original_sha256)
    uuid.UUID(label.owner_id)


def images_of(
    described: Sequence[Described], collection: Collection, *, not_current: Set[str] = frozenset()
) -> list[FoundImage]:
    """The images of these renditions, each with all that was found of it.

    What is `not_current` (paths) was judged before, by a catalog that knew it.
    """
    images: defaultdict[ImageKey, list[Described]] = defaultdict(list)
    for each in described:
        images[_key(each.label)].append(each)
    return [
        _image(found, candidates, collection.recipe)
        for found in images.values()
        if (candidates := [each for each in found if each.path not in not_current])
    ]


def _image(found: Sequence[Described], candidates: Sequence[Described], recipe: Recipe) -> FoundImage:
    by_original: defaultdict[str, list[Described]] = defaultdict(list)
    for each in candidates:
        by_original[each.label.original_sha256].append(each)
    shown = max(by_original.values(), key=lambda picture: _standing(picture, recipe))
    latest = max(_made_by(recipe, shown) or shown, key=lambda each: each.order)
    return replace(
        _image_of(latest.label, latest.order[0]),
        renditions=tuple(each.found for each in found),
        current=frozenset(each.path for each in _newest_of_each_size(shown).values()),
        is_whole=_is_whole(shown, recipe),
        placeholder=next((each.placeholder for each in shown if each.placeholder), None),
    )


def _standing(picture: Sequence[Described], recipe: Recipe) -> tuple[bool, tuple[datetime, datetime, str]]:
    """Of two pictures the one that has every size, then the later one. What rollouts make beside it does not count."""
    return _is_whole(picture, recipe), max(each.order for each in _made_by(recipe, picture) or picture)


def _made_by(recipe: Recipe, picture: Sequence[Described]) -> list[Described]:
    return [each for each in picture if each.found.rendition.recipe == recipe.name]


def _is_whole(picture: Sequence[Described], recipe: Recipe) -> bool:
    return {size.name for size in recipe.sizes} <= {
        each.found.rendition.size_name for each in _made_by(recipe, picture)
    }


def _newest_of_each_size(picture: Sequence[Described]) -> Mapping[tuple[str, str], Described]:
    newest = sorted(picture, key=lambda each: each.order)
    return {(each.found.rendition.size_name, each.found.rendition.format): each for each in newest}


async def with_originals(store: ObjectStore, images: Sequence[FoundImage]) -> list[FoundImage]:
    """The images, with what the store says of their originals.

    Raises:
        StoreUnavailable: the store fails.
    """

    async def look_at(image: FoundImage) -> FoundImage:
        head = await store.head(original_key(image.original.sha256))
        return image if head is None else replace(image, original=_measured(image.original, head))

    return await some_at_once(look_at(image) for image in images)


async def images_of_originals(
    store: ObjectStore, collection: Collection, entries: Iterable[ListedObject]
) -> tuple[list[FoundImage], list[Undescribed]]:
    """The images that these originals are of, those of other collections left out; nothing of them is rendered.

    Raises:
        StoreUnavailable: the store fails.
    """

    async def look_at(entry: ListedObject) -> FoundImage | Undescribed | None:
        head = await store.head(entry.key)
        if head is None:
            return None
        try:
            label = Label.read(head.metadata)
            if label.collection != collection.name:
                return None
            _require_of(collection, label)
            if label.original_sha256 != sha256_of(entry.key):
                raise ValueError("its key names another original than its metadata")
        except ValueError as error:
            return Undescribed(entry.key, str(error))
        image = _image_of(label, label.observed_at or entry.last_modified)
        return replace(image, original=_measured(image.original, head))

    found = await some_at_once(look_at(entry) for entry in entries)
    images = [each for each in found if isinstance(each, FoundImage)]
    latest = {image.key: image for image in sorted(images, key=lambda image: image.observed_at)}
    return list(latest.values()), [each for each in found if isinstance(each, Undescribed)]


def _image_of(label: Label, observed_at: datetime) -> FoundImage:
    return FoundImage(
        key=_key(label),
        owner_id=label.owner_id,
        shard=shard_of(uuid.UUID(label.owner_id)),
        taken_at=label.taken_at,
        observed_at=observed_at,
        original=FoundOriginal(
            sha256=label.original_sha256,
            identity=UNKNOWN_IDENTITY if label.identity is None else label.identity,
            rank=label.rank or 0,
        ),
    )


def _measured(original: FoundOriginal, head: ObjectHead) -> FoundOriginal:
    kind, _, image_format = (head.content_type or "").partition("/")
    return replace(original, file_size=head.size, format=image_format[:_MAX_FORMAT] if kind == "image" else None)


def _key(label: Label) -> ImageKey:
    return ImageKey(label.source_type, label.source_id, label.media_id)
