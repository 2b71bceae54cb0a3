"""References: which objects of the stores the catalog refers to, and how others are removed while runs publish.

A path is referred to by every rendition's row that has it, whatever its state; an original by its SHA-256, by images
and by renditions that were made from it. So rows go first, and then what no row refers to: `mark_unreferenced`.

The danger is a run that puts an object, finds that the store has it already (keys are hashes of content), and settles
after clean-up has removed it. Looking at the rows cannot tell: between put and settlement there is none. Nor can the
object's age: it is as old as its first put. Therefore

1. clean-up marks what is unreferenced, and commits, before it touches the store;
2. `settle` refuses an attempt that began before the removal of something that it put: it may have seen what is gone.
   The job is due again, and its next attempt finds the object missing and puts it anew;
3. marking and settling exclude each other by an advisory lock (shared for those who settle, held for milliseconds and
   never while the store is asked): of the two either the settlement comes first, and its rows keep the object from
   being marked, or the mark does, and the settlement sees it;
4. a mark says when the removal was over only once the store has answered. Until then no attempt is new enough;
5. one process removes at a time (`sole_remover`: a session's lock, which ends with the process). So what it finds
   marked was left by one that was killed, and no request of that one is under way any more. A session may end before
   its process does, so the lock is looked at again before each few objects.

Whoever writes such rows in any other way than by `settle` takes `lock_references` first and asks `removals`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

_LOCK, _REMOVER_LOCK = 0x72656665, 0x72656D6F  # advisory locks of their own; those of runs are hashes
_MARK_IS_OLD = timedelta(hours=1)  # a request that timed out is carried out within minutes, or never
MARKS_KEPT = timedelta(days=7)  # a run that was given up and goes on after a week is still refused


def unreferenced_paths(connection: sa.Connection, paths: Sequence[str]) -> set[str]:
    """Those of the paths that no rendition has. Ask `mark_unreferenced` before removing anything."""
    return set(connection.scalars(_UNREFERENCED_PATHS, {"references": list(paths)}))


def unreferenced_originals(connection: sa.Connection, sha256s: Sequence[str]) -> set[str]:
    """Those of the originals that neither an image nor a rendition has. Likewise."""
    return set(connection.scalars(_UNREFERENCED_ORIGINALS, {"references": list(sha256s)}))


_PATH_IS_UNREFERENCED = "NOT EXISTS (SELECT FROM cdn_image_renditions r WHERE r.path = wanted.reference)"

_ORIGINAL_IS_UNREFERENCED = """NOT EXISTS (SELECT FROM cdn_image_assets a WHERE a.original_sha256 = wanted.reference)
    AND NOT EXISTS (SELECT FROM cdn_image_renditions r WHERE r.original_sha256 = wanted.reference)"""


def _unreferenced(condition: str) -> sa.TextClause:
    return sa.text(f"""
        SELECT reference FROM unnest(CAST(:references AS text[])) AS wanted(reference) WHERE {condition}
    """)


_UNREFERENCED_PATHS = _unreferenced(_PATH_IS_UNREFERENCED)
_UNREFERENCED_ORIGINALS = _unreferenced(_ORIGINAL_IS_UNREFERENCED)


# -- for those who remove --


class RemoverLostError(Exception):
    """The lock of the sole remover is gone: another may remove, or take what is marked for left over."""


@dataclass(frozen=True, slots=True)
class Remover:
    """Who removes; `connection` holds the lock."""

    connection: sa.Connection

    def require_lock(self) -> None:
        """To be asked before each few objects that are removed.

        Raises:
            RemoverLostError: remove nothing more. What is marked is left to the next who removes.
            OperationalError: the connection is gone, and the lock with it: likewise.
        """
        if not self.connection.scalar(_HELD_HERE, {"key": _REMOVER_LOCK}):
            raise RemoverLostError("the catalog's connection did not keep the lock of who removes: begin again")


_HELD_HERE = sa.text("""
    SELECT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
        AND (classid, objid, objsubid) = (0, CAST(:key AS bigint), 1))
""")


@contextmanager
def sole_remover(engine: sa.Engine) -> Iterator[Remover]:
    """Lets nobody else remove meanwhile; waits for whoever does. Held from before the mark until after the note."""
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # closed at the end and never pooled, so that the lock cannot outlive the block
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _REMOVER_LOCK})
        yield Remover(connection)


def lock_removal(connection: sa.Connection) -> None:
    """Lets nobody settle until the transaction ends, so keep it short; waits for those who do.

    Whoever deletes rows and marks what they referred to in one transaction takes it first: settling waits for rows too.
    """
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def mark_unreferenced(
    connection: sa.Connection, *, paths: Sequence[str] = (), originals: Sequence[str] = ()
) -> set[str]:
    """Marks those of the paths and originals (SHA-256) that nothing refers to; returns them.

    Once the transaction is committed, and not before, the `sole_remover` may remove them; then `note_removed`.
    """
    lock_removal(connection)
    marked: set[str] = set()
    for references, mark in ((paths, _MARK_PATHS), (originals, _MARK_ORIGINALS)):
        if references:
            marked.update(connection.scalars(mark, {"references": sorted(set(references))}))
    return marked


def _mark(condition: str) -> sa.TextClause:
    return sa.text(f"""
        INSERT INTO cdn_removed_objects (reference, marked_at)
        SELECT reference, clock_timestamp() FROM unnest(CAST(:references AS text[])) AS wanted(reference)
        WHERE {condition}
        ON CONFLICT (reference) DO UPDATE SET marked_at = excluded.marked_at, removed_at = NULL
        RETURNING reference
    """)


_MARK_PATHS = _mark(_PATH_IS_UNREFERENCED)
_MARK_ORIGINALS = _mark(_ORIGINAL_IS_UNREFERENCED)


def note_removed(connection: sa.Connection, references: Sequence[str]) -> None:
    """Notes that these are gone from the store, and no request of ours for them is under way any more."""
    connection.execute(_NOTE_REMOVED, {"references": list(references)})


_NOTE_REMOVED = sa.text("""
    UPDATE cdn_removed_objects SET removed_at = clock_timestamp()
    WHERE reference = ANY(:references) AND removed_at IS NULL
""")


def half_removed(connection: sa.Connection, limit: int) -> list[str]:
    """What is marked and not noted as removed. The sole remover finds what others left that were killed.

    What a row refers to again, as in a catalog that was restored, is not to be removed any more: its mark is ended.
    """
    lock_removal(connection)
    connection.execute(_END_REFERRED)
    return list(connection.scalars(_HALF_REMOVED, {"limit": limit}))


_END_REFERRED = sa.text(f"""
    UPDATE cdn_removed_objects AS wanted SET removed_at = clock_timestamp()
    WHERE removed_at IS NULL
      AND CASE WHEN starts_with(reference, '/') THEN NOT ({_PATH_IS_UNREFERENCED})
               ELSE NOT ({_ORIGINAL_IS_UNREFERENCED}) END
""")

_HALF_REMOVED = sa.text("""
    SELECT reference FROM cdn_removed_objects WHERE removed_at IS NULL ORDER BY marked_at LIMIT :limit
""")


def end_old_marks(connection: sa.Connection) -> int:
    """Ends the marks that a catalog restored from a backup has brought along; returns how many. For the sole remover.

    What they speak of was removed long ago, or has been put again since: nobody is about to remove it.
    """
    return connection.execute(_END_OLD_MARKS, {"old": _MARK_IS_OLD}).rowcount


_END_OLD_MARKS = sa.text("""
    UPDATE cdn_removed_objects SET removed_at = clock_timestamp()
    WHERE removed_at IS NULL AND marked_at < clock_timestamp() - CAST(:old AS interval)
""")


def forget_removed(connection: sa.Connection) -> int:
    """Deletes the marks that no living run can meet: each began after the removal. Returns how many."""
    return connection.execute(_FORGET_REMOVED, {"kept": MARKS_KEPT}).rowcount


_FORGET_REMOVED = sa.text("""
    DELETE FROM cdn_removed_objects
    WHERE removed_at < least(clock_timestamp() - CAST(:kept AS interval),
                             (SELECT min(started_at) FROM cdn_runs WHERE ended_at IS NULL))
""")


# -- for those who refer --


def lock_references(connection: sa.Connection) -> None:
    """Lets nothing be marked as unreferenced until the transaction ends; others may take it at the same time."""
    connection.execute(sa.text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _LOCK})


@dataclass(frozen=True, slots=True)
class Removals:
    """When paths and originals were removed lately; None: they may vanish at any moment."""

    removed_at: Mapping[str, datetime | None]

    def overtake(self, references: Sequence[str], since: datetime | None) -> bool:
        """Whether one of these may have been removed since then, by the catalog's clock (None: nobody knows when)."""
        times = [self.removed_at[reference] for reference in references if reference in self.removed_at]
        return any(since is None or removed_at is None or removed_at >= since for removed_at in times)


def removals(connection: sa.Connection, references: Sequence[str]) -> Removals:
    """Which of the paths and originals clean-up has removed lately, or is about to remove.

    To be asked in the transaction that is to refer to them, after `lock_references`.
    """
    rows = connection.execute(_REMOVED, {"references": list(references)})
    return Removals({row.reference: row.removed_at for row in rows})


# A statement of its own: one that took the lock as well would look at the catalog as it was before the lock.
_REMOVED = sa.text("SELECT reference, removed_at FROM cdn_removed_objects WHERE reference = ANY(:references)")
