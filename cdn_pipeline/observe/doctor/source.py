"""The application database: reachable, and with the tables and columns that the pipeline reads."""

from collections.abc import Mapping

import sqlalchemy as sa

from cdn_pipeline.observe.doctor.databases import ask_server, refused, too_old
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, warning

_UUID = ("uuid",)
_TIME = ("timestamp with time zone", "timestamp without time zone")  # the latter is taken for UTC
_ANY = ()  # read as text, whatever it is

COLUMNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "profiles": {
        "id": _UUID,
        "username": _ANY,
        "profile_pic_url": _ANY,
        "profile_pic_url_hd": _ANY,
        "updated_at": _TIME,
    },
    "posts": {
        "id": _UUID,
        "profile_id": _UUID,
        "media_id": _ANY,
        "display_url": _ANY,
        "thumbnail_src": _ANY,
        "sidecar_children": _ANY,
        "taken_at": _TIME,
        "updated_at": _TIME,
    },
}
"""The columns of each table that is read, and the types that they may have."""

_COUNTED = 100_000  # rows: more of them take a while


def look_at_source(deployment: Deployment) -> Finding:
    """Whether it can be connected to. A standby will do, and so will a user who only reads."""
    try:
        with deployment.source.connect() as connection:
            server = ask_server(connection)
    except sa.exc.OperationalError as error:
        return refused(error, "SOURCE_DATABASE_URL")
    demo = " (the demo's: SOURCE_DATABASE_URL is not set)" if deployment.settings.embedded_source else ""
    words = f"Postgres {server.version}, database {server.database}{demo}, user {server.username}; only ever read"
    return too_old(server.major, server.version) or ok(words)


def look_at_tables(deployment: Deployment) -> Finding:
    """Whether all columns of the contract are there, have the right types, and may be read."""
    with deployment.source.connect() as connection:
        username = connection.scalar(sa.text("SELECT quote_ident(current_user)"))
        found = {table: _columns(connection, table) for table in COLUMNS}
    absent = [table for table, columns in found.items() if not columns]
    if absent:
        cure = "Name the database that has them in SOURCE_DATABASE_URL (views will do); `make demo` fills the demo's."
        return failed(f"there is no table or view {' and no '.join(absent)}", cure)
    problems = [problem for table in COLUMNS for problem in _problems(table, found[table])]
    if problems:
        return failed("; ".join(problems), "A view of the same name will do that has all columns with these types.")
    unreadable = [table for table in COLUMNS if not all(found[table][name].readable for name in COLUMNS[table])]
    if unreadable:
        grant = f"GRANT SELECT ON {', '.join(unreadable)} TO {username};"
        return failed(f"{username} may not read {' and '.join(unreadable)}", "As their owner:", grant)
    return ok(f"{' and '.join(COLUMNS)} have all columns")


def _columns(connection: sa.Connection, table: str) -> dict[str, sa.Row[tuple[str, str, bool]]]:
    return {row.name: row for row in connection.execute(_COLUMNS, {"table": table})}


_COLUMNS = sa.text("""
    SELECT attname AS name, format_type(atttypid, NULL) AS type,
           has_column_privilege(attrelid, attnum, 'SELECT') AS readable
    FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped
""")


def _problems(table: str, found: Mapping[str, sa.Row[tuple[str, str, bool]]]) -> list[str]:
    missing = [name for name in COLUMNS[table] if name not in found]
    mistyped = [
        f"{table}.{name} is {found[name].type}, not {types[0]}"
        for name, types in COLUMNS[table].items()
        if name in found and types and found[name].type not in types
    ]
    return [*([f"{table} has no {', '.join(missing)}"] if missing else ()), *mistyped]


def look_at_rows(deployment: Deployment) -> Finding:
    """Whether there is anything to mirror."""
    with deployment.source.connect() as connection:
        counts = {table: _count(connection, table) for table in COLUMNS}
    words = ", ".join(f"{_at_least(count)} {table}" for table, count in counts.items())
    if not counts["profiles"]:
        return warning(words, "Images belong to profiles: is SOURCE_DATABASE_URL the right database?")
    return ok(words)


def _count(connection: sa.Connection, table: str) -> int:
    query = sa.text(f"SELECT count(*) FROM (SELECT FROM {table} LIMIT {_COUNTED + 1}) AS sample")
    count: int = connection.execute(query).scalar_one()
    return count


def _at_least(count: int) -> str:
    return f"more than {_COUNTED:,}" if count > _COUNTED else f"{count:,}"
