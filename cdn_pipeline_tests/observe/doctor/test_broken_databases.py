"""Databases that are broken: the doctor names the cause and the cure, and finds nothing else broken."""

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import time_machine

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.observe.doctor.findings import State
from cdn_pipeline_tests.observe.doctor.pooler import running_pooler
from cdn_pipeline_tests.observe.doctor.set_ups import NOBODY, Doctor, execute, having, names
from cdn_pipeline_tests.postgres import connect

# -- the catalog --


@pytest.fixture
def locked_out(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A user whom the server asks for a password, for as long as it runs."""
    username = f"user_{uuid.uuid4().hex}"
    with connect(postgres_server.url("postgres")) as connection:
        connection.execute(f"CREATE ROLE {username} LOGIN PASSWORD 'right'")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row
        file = Path(row[0])
        before = file.read_text()
        file.write_text(f"local all {username} scram-sha-256\n{before}")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield username
        finally:
            file.write_text(before)
            connection.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("variable", ["CATALOG_DATABASE_URL", "SOURCE_DATABASE_URL"])
def test_a_wrong_password(doctor: Doctor, healthy: Mapping[str, str], locked_out: str, variable: str) -> None:
    url = healthy[variable].replace("postgres@", f"{locked_out}:wrong@")
    findings = doctor(**{variable: url})
    check = variable.partition("_")[0].lower()
    assert names(
        findings, check, "password authentication failed", f"Correct the password (@ is %40, / is %2F): {variable}"
    )


def test_no_such_database(doctor: Doctor, postgres_server: EmbeddedPostgres) -> None:
    findings = doctor(CATALOG_DATABASE_URL=postgres_server.url("nowhere"))
    assert names(findings, "catalog", 'database "nowhere" does not exist', "createdb")
    assert {"catalog schema", "clock", "CDN", "Dagster daemon"} <= having(State.SKIPPED, findings)


def test_a_database_that_does_not_answer(doctor: Doctor) -> None:
    findings = doctor(SOURCE_DATABASE_URL=f"postgresql://{NOBODY}/application")
    assert names(findings, "source", "refused", "Start Postgres")


def test_a_catalog_that_was_not_migrated(doctor: Doctor, postgres_server: EmbeddedPostgres) -> None:
    name = f"catalog_{uuid.uuid4().hex}"
    postgres_server.ensure_database(name)
    findings = doctor(CATALOG_DATABASE_URL=postgres_server.url(name))
    assert names(findings, "catalog schema", "schema version none", "cdn-pipeline migrate")


def test_another_base_url_than_that_in_the_catalog(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    findings = doctor(CDN_BASE_URL=f"http://{NOBODY}")
    assert names(findings, "catalog schema", f"the CDN is at {healthy['CDN_BASE_URL']}", "correct CDN_BASE_URL")


def test_a_user_who_may_not_write_the_catalog(
    doctor: Doctor, healthy: Mapping[str, str], catalog: sa.Engine, locked_out: str
) -> None:
    url = healthy["CATALOG_DATABASE_URL"]
    reader = url.replace("postgres@", f"{locked_out}:right@")
    findings = doctor(CATALOG_DATABASE_URL=reader)
    assert names(findings, "catalog rights", "may not read and write cdn_alerts", f"TO {locked_out};")
    execute(url, *findings["catalog rights"].paste)
    findings = doctor(CATALOG_DATABASE_URL=reader)
    assert having(State.FAILED, findings) == set()
    assert "`cdn-pipeline migrate` wants the tables' owner" in findings["catalog rights"].words


def test_a_pooler_in_transaction_mode(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    url = sa.make_url(healthy["CATALOG_DATABASE_URL"])
    folder = url.query["host"]
    assert isinstance(folder, str)
    with running_pooler(folder) as port:
        findings = doctor(CATALOG_DATABASE_URL=f"postgresql://postgres@127.0.0.1:{port}/{url.database}")
    assert names(findings, "catalog session", "transaction mode", "pool_mode = session")


@pytest.mark.parametrize(("hours", "state"), [(1, State.FAILED), (0.01, State.WARNING)])
def test_a_clock_that_is_wrong(doctor: Doctor, hours: float, state: State) -> None:
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=hours)):
        findings = doctor()
    assert names(findings, "clock", f"{3600 * hours:.0f}.", "timedatectl", state=state)


# -- the application database --


def test_no_tables(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(healthy["SOURCE_DATABASE_URL"], "DROP TABLE posts")
    findings = doctor()
    assert names(findings, "source tables", "there is no table or view posts", "SOURCE_DATABASE_URL")
    assert {"source indexes", "source rows", "source shards"} <= having(State.SKIPPED, findings)


def test_a_missing_column_and_one_of_another_type(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(
        healthy["SOURCE_DATABASE_URL"],
        "ALTER TABLE posts DROP COLUMN thumbnail_src",
        "ALTER TABLE profiles ALTER updated_at TYPE text",
    )
    words = "profiles.updated_at is text, not timestamp with time zone; posts has no thumbnail_src"
    assert names(doctor(), "source tables", words, "A view of the same name will do")


def test_a_user_who_may_not_read_the_tables(doctor: Doctor, healthy: Mapping[str, str], locked_out: str) -> None:
    owner = healthy["SOURCE_DATABASE_URL"]
    reader = owner.replace("postgres@", f"{locked_out}:right@")
    findings = doctor(SOURCE_DATABASE_URL=reader)
    assert names(findings, "source tables", "may not read profiles and posts", "GRANT SELECT")
    execute(owner, *findings["source tables"].paste)
    assert having(State.FAILED, doctor()) == set()


def test_missing_indexes_whose_ddl_is_ready_to_paste(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    """What does not serve every row, or begins with another column, is no index."""
    source = healthy["SOURCE_DATABASE_URL"]
    execute(
        source,
        "DROP INDEX idx_posts_updated_at, idx_posts_profile_taken",
        "CREATE INDEX partial ON posts (updated_at) WHERE display_url IS NOT NULL",
        "CREATE INDEX other_way_around ON posts (taken_at, profile_id)",
        "CREATE INDEX included ON posts (profile_id) INCLUDE (taken_at)",
    )
    findings = doctor()
    assert names(findings, "source indexes", "2 missing", "CREATE INDEX CONCURRENTLY", state=State.WARNING)
    execute(source, *findings["source indexes"].paste)
    assert doctor()["source indexes"].state is State.OK


def test_a_partitioned_table_gets_ddl_that_postgres_takes(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    source = healthy["SOURCE_DATABASE_URL"]
    execute(
        source,
        "ALTER TABLE posts RENAME TO old_posts",
        "CREATE TABLE posts (LIKE old_posts) PARTITION BY RANGE (taken_at)",
        "CREATE TABLE all_posts PARTITION OF posts DEFAULT",
    )
    findings = doctor()
    assert names(findings, "source indexes", "2 missing", "CREATE INDEX ON public.posts", state=State.WARNING)
    execute(source, *findings["source indexes"].paste)
    assert doctor()["source indexes"].state is State.OK


def test_views_are_read_and_their_indexes_cannot_be_seen(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(
        healthy["SOURCE_DATABASE_URL"],
        "ALTER TABLE posts RENAME TO app_posts",
        "CREATE VIEW posts AS SELECT * FROM app_posts",
    )
    findings = doctor()
    assert names(findings, "source indexes", "posts(profile_id, taken_at)", "", state=State.SKIPPED)


def test_ids_of_uuid_version_7_crowd_into_one_shard_until_they_are_hashed(
    doctor: Doctor, healthy: Mapping[str, str]
) -> None:
    source = healthy["SOURCE_DATABASE_URL"]
    execute(
        source,
        "TRUNCATE profiles CASCADE",
        "INSERT INTO profiles (id, username, updated_at) SELECT uuidv7(), 'name', now() FROM generate_series(1, 2000)",
    )
    findings = doctor()
    words = "has 100.0% of 2,000 profiles; 100% of the ids are UUIDv6 or v7"
    assert names(findings, "source shards", words, "md5(id::text)::uuid", state=State.WARNING)
    execute(source, *findings["source shards"].paste)
    hashed = doctor(SOURCE_DATABASE_URL=f"{source}&options=-csearch_path%3Dcdn_source")
    assert hashed["source shards"].state is State.OK
    assert hashed["source tables"].state is State.OK
    assert having(State.FAILED, hashed) == set()


def test_random_ids_in_one_corner_are_told_as_well(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(
        healthy["SOURCE_DATABASE_URL"],
        """INSERT INTO profiles (id, username, updated_at)
           SELECT ('00' || right(gen_random_uuid()::text, -2))::uuid, 'name', now() FROM generate_series(1, 1000)""",
    )
    findings = doctor()
    assert names(findings, "source shards", "the fullest of 64 shards has", "hash the ids", state=State.WARNING)
    assert "UUIDv" not in findings["source shards"].words


def test_a_database_without_profiles(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(healthy["SOURCE_DATABASE_URL"], "TRUNCATE profiles CASCADE")
    findings = doctor()
    assert names(findings, "source rows", "0 profiles, 0 posts", "right database", state=State.WARNING)
    assert findings["source shards"].state is State.SKIPPED
