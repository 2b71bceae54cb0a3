"""What both databases are asked first, and what their refusals mean."""

import re

import sqlalchemy as sa

from cdn_pipeline.observe.doctor.findings import Finding, failed

_OLDEST = 15

# Of a connection that was not made there are only words: libpq gives no SQLSTATE.
_CURES = (
    ("password authentication failed|no password supplied|fe_sendauth", "Correct the password (@ is %40, / is %2F)"),
    ('role ".*" does not exist', "Create the user, or correct its name"),
    ('database ".*" does not exist', "Create the database (createdb), or correct its name"),
    ("resolve|Name or service not known|No address", "Correct the host's name"),
    ("pg_hba.conf", "Let this machine in there, or add ?sslmode=require"),
    ("too many clients|connection slots", "Raise max_connections there, or close what holds connections"),
    ("permission denied", "GRANT CONNECT to this user there, or correct the user's name"),
    ("SSL|certificate", "Correct ?sslmode= or the certificate"),
    ("refused|time|unreachable|No route|No such file", "Start Postgres, let this machine in, or correct host and port"),
)  # fmt: skip

_SERVER = sa.text("""
    SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,
           current_user AS username, current_database() AS database, pg_is_in_recovery() AS is_standby
""")


def ask_server(connection: sa.Connection) -> sa.Row[tuple[str, int, str, str, bool]]:
    """Version, major version, user, database, and whether it is a standby."""
    return connection.execute(_SERVER).one()


def refused(error: sa.exc.OperationalError, variable: str) -> Finding:
    """Why there is no connection, and what to do: to the database or to the variable that names it."""
    words = " ".join(str(error.orig).split())
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, words)), "Look at Postgres's own log")
    return failed(words, f"{cure}: {variable}.")


def too_old(major: int, version: str) -> Finding | None:
    """A finding if this version of Postgres is not supported."""
    if major >= _OLDEST:
        return None
    return failed(f"Postgres {version}", f"Upgrade it to Postgres {_OLDEST} or newer.")
