"""Verification: catalog against stores, both ways, and repairs by ordinary jobs.

A rendition is made again from its original; an original that is lost is downloaded again if its URL lives.
"""

import asyncio
import hashlib
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import sqlalchemy as sa

from cdn_pipeline.catalog.sampling import at_random, random_start
from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.reopen import open_repair_jobs
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectMissing, ObjectStore, is_cache_control
from cdn_pipeline.upkeep.requests import some_at_once
from cdn_pipeline.upkeep.stores import Part
from cdn_pipeline.upkeep.survey import Survey, survey_originals, survey_renditions

BATCH = 500
MAX_SAMPLES = 20
FEW = 100  # lost objects that may outnumber those that are there
_LOWEST = uuid.UUID(int=0)


class Problem(StrEnum):
    """What may be wrong with an object that the catalog refers to."""

    MISSING = "missing"
    SIZE = "of another size"
    BYTES = "of other bytes"
    HEADERS = "of another content type or Cache-Control"  # told, but not repaired: its bytes are right


class WrongStoreError(Exception):
    """Most objects are missing: this is another store, or one that was emptied."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An object, by path or SHA-256, that is not as the catalog says, the image that needs it, and who made it."""

    reference: str
    problem: Problem
    asset_id: uuid.UUID
    recipe: str | None

    @property
    def words(self) -> str:
        """The finding in words."""
        return f"{self.reference} is {self.problem} (image {self.asset_id})"


@dataclass(slots=True)
class Verified:
    """How many objects of a part were looked at, and what is wrong with how many of them.

    `repaired` of these have a job now that mends them; `samples` names some of the others.
    """

    part: Part
    looked_at: int = 0
    problems: Counter[Problem] = field(default_factory=Counter)
    repaired: int = 0
    samples: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Objects that are not as the catalog says."""
        return self.problems.total()


@dataclass(frozen=True, slots=True)
class Verification:
    """Verifies the parts whose stores are given; `read` reads every object to compare its hash, not only its size."""

    catalog: sa.Engine
    collection: Collection
    stores: Mapping[Part, ObjectStore]
    sample: int | None = None  # objects of each part, drawn at random; None: all
    read: bool = False
    repair: bool = False
    force: bool = False  # repairs even a store that has lost most objects

    def run(self) -> Iterator[Verified]:
        """Yields each part after every batch, the same object as it grows.

        Raises:
            StoreUnavailable: a store does not answer.
            WrongStoreError: it has lost most objects; nothing more is repaired.
        """
        for part in self.stores:
            verified = Verified(part)
            yield verified
            for batch in self._batches(part):
                self._verify(verified, batch)
                yield verified

    def unknown(self) -> Mapping[Part, Survey]:
        """What the stores have and the catalog does not know; lists the stores in full.

        Raises:
            StoreUnavailable: a store does not answer.
        """
        with self.catalog.connect() as connection:
            return {part: asyncio.run(self._survey(connection, part)) for part in self.stores}

    async def _survey(self, connection: sa.Connection, part: Part) -> Survey:
        if part is Part.RENDITIONS:
            return await survey_renditions(connection, self.stores[part], self.collection, keep=0)
        return await survey_originals(connection, self.stores[part], keep=0)

    def _batches(self, part: Part) -> Iterator[Sequence[sa.RowMapping]]:
        if self.sample is None:
            yield from self._all(part)
        else:
            drawn = self._rows(_AT_RANDOM[part], start=random_start(), count=self.sample)
            yield from (drawn[begin : begin + BATCH] for begin in range(0, len(drawn), BATCH))

    def _all(self, part: Part) -> Iterator[Sequence[sa.RowMapping]]:
        after = _LOWEST
        while batch := self._rows(_NEXT[part], after=after, limit=BATCH):
            yield batch
            after = batch[-1]["id"]

    def _rows(self, query: sa.TextClause, **values: object) -> Sequence[sa.RowMapping]:
        with self.catalog.connect() as connection:
            return connection.execute(query, {"collection": self.collection.name, **values}).mappings().all()

    def _verify(self, verified: Verified, batch: Sequence[sa.RowMapping]) -> None:
        findings = asyncio.run(_findings(self.stores[verified.part], verified.part, batch, read=self.read))
        verified.looked_at += len(batch)
        if findings:
            with self.catalog.connect() as connection:
                findings = _still_referred_to(connection, verified.part, findings)
        verified.problems.update(finding.problem for finding in findings)
        if self.repair and not self.force:
            self._require_store_of(verified)
        repaired = self._repair(verified.part, findings) if self.repair else set()
        left = [finding for finding in findings if finding not in repaired]
        verified.repaired += len(repaired)
        verified.samples += left[: MAX_SAMPLES - len(verified.samples)]

    def _require_store_of(self, verified: Verified) -> None:
        missing = verified.problems[Problem.MISSING]
        if missing > max(FEW, verified.looked_at / 2):
            raise WrongStoreError(
                f"{self.stores[verified.part].url} has lost {missing} of {verified.looked_at} {verified.part}: is it "
                "the store of this catalog? If all is to be made again: `cdn-pipeline verify --all --repair --force`"
            )

    def _repair(self, part: Part, findings: Sequence[Finding]) -> set[Finding]:
        """Opens jobs for what they can mend; returns that."""
        wanted: defaultdict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            if finding.problem is not Problem.HEADERS:
                wanted[finding.recipe or self.collection.recipe.name].append(finding)
        repaired: set[Finding] = set()
        for recipe in self.collection.recipes:
            if broken := wanted[recipe.name]:
                open_jobs = partial(
                    open_repair_jobs,
                    collection=self.collection,
                    recipe=recipe,
                    asset_ids=[finding.asset_id for finding in broken],
                    stage=Stage.ENCODE if part is Part.RENDITIONS else Stage.DOWNLOAD,
                )
                images = transaction(self.catalog, open_jobs)
                repaired.update(finding for finding in broken if finding.asset_id in images)
        return repaired


_TARGETS = {
    Part.RENDITIONS: """
        SELECT t.id, t.asset_id, t.path AS reference, t.file_size AS size, t.content_hash AS sha256, t.recipe,
               'image/' || t.format AS content_type
        FROM cdn_image_renditions t JOIN cdn_image_assets a ON a.id = t.asset_id AND a.collection = :collection
        WHERE t.state = 'current'
    """,
    Part.ORIGINALS: """
        SELECT t.id, t.id AS asset_id, t.original_sha256 AS reference, t.original_file_size AS size,
               t.original_sha256 AS sha256, NULL AS recipe, NULL AS content_type
        FROM cdn_image_assets t
        WHERE t.collection = :collection AND t.original_sha256 IS NOT NULL
    """,
}

_NEXT = {part: sa.text(f"{targets} AND t.id > :after ORDER BY t.id LIMIT :limit") for part, targets in _TARGETS.items()}

_AT_RANDOM = {part: sa.text(at_random(targets, "t.original_sha256")) for part, targets in _TARGETS.items()}


def _still_referred_to(connection: sa.Connection, part: Part, findings: Sequence[Finding]) -> list[Finding]:
    """Without those whose image shows another picture, or is erased, since the batch was read."""
    values = {
        "asset_ids": [finding.asset_id for finding in findings],
        "references": [finding.reference for finding in findings],
    }
    still = {(row.asset_id, row.reference) for row in connection.execute(_STILL[part], values)}
    return [finding for finding in findings if (finding.asset_id, finding.reference) in still]


_WANTED = "unnest(CAST(:asset_ids AS uuid[]), CAST(:references AS text[])) AS wanted(asset_id, reference)"

_STILL = {
    Part.RENDITIONS: sa.text(f"""
        SELECT wanted.asset_id, wanted.reference FROM {_WANTED}
        JOIN cdn_image_renditions r ON r.asset_id = wanted.asset_id AND r.path = wanted.reference
        WHERE r.state = 'current'
    """),
    Part.ORIGINALS: sa.text(f"""
        SELECT wanted.asset_id, wanted.reference FROM {_WANTED}
        JOIN cdn_image_assets a ON a.id = wanted.asset_id AND a.original_sha256 = wanted.reference
    """),
}


async def _findings(store: ObjectStore, part: Part, targets: Sequence[sa.RowMapping], *, read: bool) -> list[Finding]:
    async def look_at(target: sa.RowMapping) -> Finding | None:
        key = target["reference"].removeprefix("/") if part is Part.RENDITIONS else original_key(target["reference"])
        problem = await _problem(store, key, target, read=read)
        if problem is None:
            return None
        return Finding(target["reference"], problem, target["asset_id"], target["recipe"])

    found = await some_at_once(map(look_at, targets))
    return [finding for finding in found if finding is not None]


async def _problem(store: ObjectStore, key: str, target: sa.RowMapping, *, read: bool) -> Problem | None:
    head = await store.head(key)
    if head is None:
        return Problem.MISSING
    if target["size"] is not None and head.size != target["size"]:
        return Problem.SIZE
    if read:
        try:
            data = await store.get(key)
        except ObjectMissing:
            return Problem.MISSING
        if hashlib.sha256(data).hexdigest() != target["sha256"]:
            return Problem.BYTES
    # A folder's objects have no headers unless a manifest is there; the server makes them from the key.
    if None in (head.content_type, target["content_type"]):
        return None
    if head.content_type != target["content_type"] or not is_cache_control(head.cache_control):
        return Problem.HEADERS
    return None
