"""The two stores, opened together."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cdn_pipeline.engine.mirror import open_store
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.objects import ObjectStore


class Part(StrEnum):
    """What of an image lies in a store."""

    RENDITIONS = "current renditions"
    ORIGINALS = "originals"


@dataclass(frozen=True, slots=True)
class Stores:
    """Renditions are public and lie at their CDN path; originals are private."""

    renditions: ObjectStore
    originals: ObjectStore

    @property
    def by_part(self) -> Mapping[Part, ObjectStore]:
        """The store of each part."""
        return {Part.RENDITIONS: self.renditions, Part.ORIGINALS: self.originals}


def open_stores(settings: Settings) -> Stores:
    """The stores that the settings name.

    Raises:
        StoreUnavailable: a folder cannot be created.
    """
    return Stores(open_store(settings, settings.objects_url), open_store(settings, settings.originals_url))
