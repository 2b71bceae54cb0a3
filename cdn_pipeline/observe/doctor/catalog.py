"""Our own database: reachable, keeps sessions, migrated, writable, and its clock."""

import secrets
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from cdn_pipeline.catalog.migrate import CatalogOutdatedError, require_current
from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.catalog.tables import metadata
from cdn_pipeline.observe.doctor.databases import ask_server, refused, too_old
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, warning

_SKEW_WARNING = timedelta(seconds=5)
_SKEW_ERROR = timedelta(minutes=5)  # S3 and R2 refuse signatures that are 15 minutes off


def look_at_catalog(deployment: Deployment) -> Finding:
    """Whether it can be connected to, is new enough, and can be written to at all."""
    try:
        with deployment.catalog.connect() as connection:
            server = ask_server(connection)
    except sa.exc.OperationalError as error:
        return refused(error, "CATALOG_DATABASE_URL")
    if server.is_standby:
        return failed(f"{server.database} is a standby, which only reads", "Name the primary in CATALOG_DATABASE_URL.")
    words = f"Postgres {server.version}, database {server.database}, user {server.username}"
    return too_old(server.major, server.version) or ok(words)


def look_at_session(deployment: Deployment) -> Finding:
    """Whether a session lock holds from one statement to the next, as every run's does.

    A pooler in transaction mode gives each transaction whichever connection is free. So another client's transaction
    takes the one that was used for the lock.
    """
    key = {"key": secrets.randbits(62)}
    with deployment.catalog.connect() as connection, deployment.catalog.connect() as other:
        session = connection.execution_options(isolation_level="AUTOCOMMIT")
        session.execute(_TAKE_LOCK, key)
        other.execute(sa.text("SELECT 1"))
        is_held = session.scalar(_HOLDS_LOCK, key)
        session.execute(_GIVE_LOCK_BACK, key)
    if is_held:
        return ok("a session lock holds from one statement to the next")
    return failed(
        "a session lock is lost between two statements: there is a pooler in transaction mode",
        "Name Postgres itself in CATALOG_DATABASE_URL, or a pool in session mode (PgBouncer: pool_mode = session).",
    )


_TAKE_LOCK = sa.text("SELECT pg_advisory_lock(:key)")
_GIVE_LOCK_BACK = sa.text("SELECT pg_advisory_unlock(:key)")
_HOLDS_LOCK = sa.text("""
    SELECT EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND (classid::bigint << 32) | objid::bigint = :key)
""")


def look_at_schema(deployment: Deployment) -> Finding:
    """Whether `cdn-pipeline migrate` was run since this code or the base URL has changed."""
    base_url = deployment.settings.public_base_url
    try:
        require_current(deployment.catalog, base_url)
    except CatalogOutdatedError as error:
        words, _, _ = str(error).partition(": run ")
        return failed(words, "Run `cdn-pipeline migrate`, or correct CDN_BASE_URL if that is what is wrong.")
    return ok(f"current, and its URLs begin with {base_url}")


def look_at_rights(deployment: Deployment) -> Finding:
    """Whether our user may write all tables that are there, and make those that are not."""
    with deployment.catalog.connect() as connection:
        rights = connection.execute(_RIGHTS).one()
        tables = {"tables": list(metadata.tables)}
        missing = connection.scalars(_MISSING_RIGHTS, tables).all()
        is_empty = connection.scalar(_IS_EMPTY, tables)
    if missing:
        names = ", ".join(missing)
        return failed(
            f"{rights.username} may not read and write {names}",
            "As their owner:",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO {rights.username};",
            f"GRANT SELECT ON alembic_version TO {rights.username};",
        )
    if rights.may_create:
        return ok(f"{rights.username} may read and write, and migrate")
    if is_empty:
        grant = f"GRANT CREATE, USAGE ON SCHEMA {rights.schema} TO {rights.username};"
        return failed(f"{rights.username} may not create tables in {rights.schema}", "As the schema's owner:", grant)
    return ok(f"{rights.username} may read and write; `cdn-pipeline migrate` wants the tables' owner")


_RIGHTS = sa.text("""
    SELECT quote_ident(current_user) AS username, quote_ident(coalesce(current_schema(), 'public')) AS schema,
           coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create
""")

_MISSING_RIGHTS = sa.text("""
    SELECT name FROM unnest(CAST(:tables AS text[])) AS name
    WHERE EXISTS (
        SELECT FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE NOT has_table_privilege(to_regclass(name), privilege))
    ORDER BY name
""")

_IS_EMPTY = sa.text("SELECT every(to_regclass(name) IS NULL) FROM unnest(CAST(:tables AS text[])) AS name")


def look_at_clock(deployment: Deployment) -> Finding:
    """Whether this machine and the catalog agree on the time; half of the round trip is the margin."""
    with deployment.catalog.connect() as connection:
        before = datetime.now(UTC)
        there = catalog_time(connection)
        after = datetime.now(UTC)
    skew = abs(there - before - (after - before) / 2)
    words = f"this machine and the catalog are {skew.total_seconds():.1f} s apart"
    cure = "Keep both in time (`timedatectl set-ntp true`): stores refuse signatures of another time."
    if skew > _SKEW_ERROR:
        return failed(words, cure)
    return warning(words, cure) if skew > _SKEW_WARNING else ok(words)
