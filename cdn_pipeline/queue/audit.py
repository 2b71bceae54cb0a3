"""The audit: who asked for what through the API, and how much it concerned. Rows are only added."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that somebody did; `affected` counts jobs or images."""

    id: uuid.UUID
    at: datetime
    actor: str
    action: str
    details: Mapping[str, Any]
    affected: int


def note_action(
    connection: sa.Connection, actor: str, action: str, *, details: Mapping[str, Any], affected: int
) -> None:
    """Adds a row, in the transaction of what was done: neither is there without the other."""
    values = {"actor": actor, "action": action, "details": dict(details), "affected": affected}
    connection.execute(_NOTE, values)


_NOTE = sa.text("""
    INSERT INTO cdn_audit (at, actor, action, details, affected)
    VALUES (clock_timestamp(), :actor, :action, :details, :affected)
""").bindparams(sa.bindparam("details", type_=JSONB))


def latest_actions(connection: sa.Connection, limit: int, actions: Sequence[str] | None = None) -> Sequence[AuditEntry]:
    """The latest rows (of these actions only), the latest first."""
    values = {"limit": limit, "actions": None if actions is None else list(actions)}
    return [AuditEntry(**row) for row in connection.execute(_LATEST, values).mappings()]


_LATEST = sa.text("""
    SELECT id, at, actor, action, details, affected FROM cdn_audit
    WHERE CAST(:actions AS text[]) IS NULL OR action = ANY(:actions)
    ORDER BY at DESC, id LIMIT :limit
""")
