"""A clock that a simulation moves: a catalog whose `now()` and `clock_timestamp()` are some time off.

Postgres looks its own functions up first, unless the search path names `pg_catalog` later: with `public` before it,
functions there take the place of Postgres's own in every query of the database, and no query needs to know. Between two
moves time goes on as usual.
"""

from datetime import timedelta

import sqlalchemy as sa

_INSTALL = """
    CREATE TABLE public.simulated_clock (offset_by interval NOT NULL);
    INSERT INTO public.simulated_clock VALUES ('0');
    CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz STABLE LANGUAGE sql
        AS 'SELECT pg_catalog.clock_timestamp() + (SELECT offset_by FROM public.simulated_clock)';
    CREATE FUNCTION public.now() RETURNS timestamptz STABLE LANGUAGE sql
        AS 'SELECT pg_catalog.now() + (SELECT offset_by FROM public.simulated_clock)';
    -- In simulated time the server has always run.
    CREATE FUNCTION public.pg_postmaster_start_time() RETURNS timestamptz STABLE LANGUAGE sql
        AS 'SELECT CAST(''-infinity'' AS timestamptz)'
"""


def install(engine: sa.Engine) -> None:
    """Makes the clock of this database movable. Run it before `migrate`, so that column defaults follow as well."""
    with engine.begin() as connection:
        connection.execute(sa.text(_INSTALL))
        name = connection.scalar(sa.text("SELECT quote_ident(current_database())"))
        connection.execute(sa.text(f"ALTER DATABASE {name} SET search_path = public, pg_catalog"))
    engine.dispose()  # connections keep the search path they began with


def set_offset(engine: sa.Engine, offset: timedelta) -> None:
    """Moves the database's clock to so much after (or before) the real one."""
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE public.simulated_clock SET offset_by = :offset"), {"offset": offset})
