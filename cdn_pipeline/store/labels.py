"""What every object says of itself in its metadata, so that the catalog can be rebuilt from the stores alone.

No URL: a label is as public as its object. What a label lacks was not written yet when the object was put.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

_BLURHASH = re.compile(r"[0-9A-Za-z#$%*+,\-.:;=?@\[\]^_{|}~]{6,60}")  # as many as the catalog takes


@dataclass(frozen=True, slots=True)
class Label:
    """Which image an object is of, and which sighting of which original.

    A picture that two images share is stored once, and its original names the first of them.
    """

    collection: str
    owner_id: str
    source_type: str
    source_id: str
    media_id: str
    original_sha256: str
    identity: str | None = None  # with `rank`: of the original
    rank: int | None = None
    observed_at: datetime | None = None  # when the source was seen to show this picture: of two, the later is current
    taken_at: datetime | None = None

    def metadata(self) -> dict[str, str]:
        """As a store takes it."""
        return _without_none(
            {
                "collection": self.collection,
                "owner": self.owner_id,
                "source-type": self.source_type,
                "source-id": self.source_id,
                "media-id": self.media_id,
                "original": self.original_sha256,
                "identity": self.identity,
                "rank": None if self.rank is None else str(self.rank),
                "observed": _in_utc(self.observed_at),
                "taken": _in_utc(self.taken_at),
            }
        )

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "Label":
        """The label that was written as this metadata.

        Raises:
            ValueError: it is none.
        """
        return cls(
            collection=_required(metadata, "collection"),
            owner_id=_required(metadata, "owner"),
            source_type=_required(metadata, "source-type"),
            source_id=_required(metadata, "source-id"),
            media_id=_required(metadata, "media-id"),
            original_sha256=_required(metadata, "original"),
            identity=metadata.get("identity"),
            rank=_number(metadata, "rank"),
            observed_at=_time(metadata, "observed"),
            taken_at=_time(metadata, "taken"),
        )


@dataclass(frozen=True, slots=True)
class RenditionLabel:
    """The label of a rendition: what it was made of, and how. Sides in pixels; `sha256` of its own bytes.

    The placeholder is its picture's, for whoever has no pixels at hand: publication by a later run, and rebuilding.
    """

    image: Label
    recipe: str
    recipe_version: int
    size: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    encoder: str | None = None
    placeholder: str | None = None

    def metadata(self) -> dict[str, str]:
        """As a store takes it."""
        return self.image.metadata() | _without_none(
            {
                "recipe": f"{self.recipe}/{self.recipe_version}",
                "size": self.size,
                "sha256": self.sha256,
                "width": None if self.width is None else str(self.width),
                "height": None if self.height is None else str(self.height),
                "encoder": self.encoder,
                "placeholder": self.placeholder,
            }
        )

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "RenditionLabel":
        """The label that was written as this metadata.

        Raises:
            ValueError: it is none.
        """
        recipe, _, version = _required(metadata, "recipe").rpartition("/")
        return cls(
            image=Label.read(metadata),
            recipe=recipe,
            recipe_version=int(version),
            size=_required(metadata, "size"),
            sha256=metadata.get("sha256"),
            width=_number(metadata, "width"),
            height=_number(metadata, "height"),
            encoder=metadata.get("encoder"),
            placeholder=placeholder_in(metadata),
        )


def placeholder_in(metadata: Mapping[str, str]) -> str | None:
    """The placeholder that a rendition's metadata has, whatever else it lacks; None also if it cannot be one."""
    placeholder = metadata.get("placeholder", "")
    return placeholder if _BLURHASH.fullmatch(placeholder) else None


def _without_none(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _in_utc(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()


def _required(metadata: Mapping[str, str], name: str) -> str:
    try:
        return metadata[name]
    except KeyError:
        raise ValueError(f"the metadata has no {name}") from None


def _number(metadata: Mapping[str, str], name: str) -> int | None:
    return int(metadata[name]) if name in metadata else None


def _time(metadata: Mapping[str, str], name: str) -> datetime | None:
    """With a time zone, so that all times can be compared."""
    if name not in metadata:
        return None
    time = datetime.fromisoformat(metadata[name])
    if time.tzinfo is None:
        raise ValueError(f"{name} has no time zone: {time}")
    return time
