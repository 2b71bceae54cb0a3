"""How the rows of the application database lie: indexes that are missing, and profiles crowded into few shards."""

from collections.abc import Iterator

import sqlalchemy as sa

from cdn_pipeline.collections import SHARD_COUNT
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, ok, skipped, warning
from cdn_pipeline.observe.doctor.source import COLUMNS

_INDEXES = (
    ("profiles", ("id",)),  # a range of shards is a range of ids
    ("profiles", ("updated_at",)),
    ("posts", ("updated_at",)),
    ("posts", ("profile_id", "taken_at")),
)
_WITH_INDEXES = ("r", "p", "m")  # tables, partitioned ones, materialized views
_PARTITIONED = "p"

_SAMPLE = 100_000  # profiles
_FULLEST = 0.10  # of all profiles; evenly spread it is 1.6 %
_HALF = 0.5  # of all ids
_ENOUGH = 10 * SHARD_COUNT  # profiles: the fullest of fewer says little


def look_at_indexes(deployment: Deployment) -> Finding:
    """Whether what the pipeline looks rows up by is indexed. It works without, and reads whole tables then."""
    with deployment.source.connect() as connection:
        relations = {table: connection.execute(_RELATION, {"table": table}).one() for table in COLUMNS}
        missing = [
            _index(relations[table], ", ".join(columns))
            for table, columns in _INDEXES
            if relations[table].kind in _WITH_INDEXES and not _is_indexed(connection, table, columns)
        ]
    if missing:
        return warning(
            f"{len(missing)} missing: every look reads whole tables", "In the application database:", *missing
        )
    unknown = [table for table in COLUMNS if relations[table].kind not in _WITH_INDEXES]
    if unknown:
        wanted = ", ".join(f"{table}({', '.join(columns)})" for table, columns in _INDEXES if table in unknown)
        return skipped(f"views do not tell: the tables behind them want indexes that serve {wanted}")
    return ok("everything that rows are looked up by is indexed")


_RELATION = sa.text("""
    SELECT format('%I.%I', nspname, relname) AS name, relkind::text AS kind
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = to_regclass(:table)
""")


def _is_indexed(connection: sa.Connection, table: str, columns: tuple[str, ...]) -> bool:
    indexed = connection.scalars(_INDEXED, {"table": table}).all()
    return any(tuple(index[: len(columns)]) == columns for index in indexed)


# The columns of each index that may be used for any row; an expression is NULL.
_INDEXED = sa.text("""
    SELECT ARRAY(
        SELECT attname::text FROM unnest(indkey) WITH ORDINALITY AS key (number, place)
        LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = number AND number > 0
        WHERE place <= indnkeyatts ORDER BY place)
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE indrelid = to_regclass(:table) AND indisvalid AND indpred IS NULL AND amname = 'btree'
""")


def _index(relation: sa.Row[tuple[str, str]], keys: str) -> str:
    """DDL of an index that Postgres gives a name, and makes without locking anybody out where it can."""
    concurrently = "" if relation.kind == _PARTITIONED else " CONCURRENTLY"
    return f"CREATE INDEX{concurrently} ON {relation.name} ({keys});"


def look_at_shards(deployment: Deployment) -> Finding:
    """Whether profiles spread over all shards, which the top bits of their ids decide.

    Ids of UUID version 6 and 7 begin with the time, so that those of one year share their top bits.
    """
    with deployment.source.connect() as connection:
        shards = connection.execute(_SHARDS, {"sample": _SAMPLE, "bits": 8 - (SHARD_COUNT - 1).bit_length()}).all()
        profiles = sum(shard.profiles for shard in shards)
        if not profiles:
            return skipped("there are no profiles")
        by_time = sum(shard.by_time for shard in shards) / profiles
        fullest = max(shard.profiles for shard in shards) / profiles
        words = f"the fullest of {SHARD_COUNT} shards has {fullest:.1%} of {profiles:,} profiles"
        if by_time <= _HALF and (fullest <= _FULLEST or profiles < _ENOUGH):
            return ok(words)
        if by_time > _HALF:
            words += f"; {by_time:.0%} of the ids are UUIDv6 or v7, which begin with the time"
        cure = (
            "Few shards, few runs at once; else nothing is wrong. To spread the work, hash the ids before the first "
            "run: two views do it. Owner ids in catalog, keys and API are md5(id::text)::uuid then. In the application "
            "database, and with ?options=-csearch_path%3Dcdn_source at the end of SOURCE_DATABASE_URL:"
        )
        return warning(words, cure, *_hashing_views(connection))


_SHARDS = sa.text("""
    SELECT get_byte(uuid_send(id), 0) >> :bits AS shard, count(*) AS profiles,
           count(*) FILTER (WHERE get_byte(uuid_send(id), 6) >> 4 IN (6, 7)) AS by_time
    FROM (SELECT id FROM profiles LIMIT :sample) AS sample GROUP BY 1
""")


def _hashing_views(connection: sa.Connection) -> Iterator[str]:
    """DDL of views with hashed profile ids, and of the indexes that these are found by."""
    username = connection.scalar(sa.text("SELECT quote_ident(current_user)"))
    yield "CREATE SCHEMA cdn_source;"
    for table, owner, also in (("profiles", "id", ""), ("posts", "profile_id", ", taken_at")):
        relation = connection.execute(_RELATION, {"table": table}).one()
        hashed = f"md5({owner}::text)::uuid"
        columns = ", ".join(f"{hashed} AS {owner}" if column == owner else column for column in COLUMNS[table])
        yield f"CREATE VIEW cdn_source.{table} AS SELECT {columns} FROM {relation.name};"
        if relation.kind in _WITH_INDEXES:
            yield _index(relation, f"({hashed}){also}")
    yield f"GRANT USAGE ON SCHEMA cdn_source TO {username};"
    yield f"GRANT SELECT ON cdn_source.profiles, cdn_source.posts TO {username};"
