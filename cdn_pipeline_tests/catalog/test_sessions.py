import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog import sessions
from cdn_pipeline.catalog.migrate import CatalogOutdatedError
from cdn_pipeline.catalog.sessions import (
    is_away,
    limit_statements,
    open_catalog,
    open_demo_database,
    open_source_database,
    open_unmigrated_catalog,
    transaction,
    with_driver,
)
from cdn_pipeline.settings import ConfigurationError, Settings
from cdn_pipeline_tests.postgres import open_folder


def changed(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)


# -- opening --


def test_a_migrated_catalog_opens(settings: Settings) -> None:
    with open_catalog(settings) as engine, engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM cdn_image_urls")) == 0


def test_a_catalog_that_is_not_migrated_is_refused_and_opens_for_migration(
    settings: Settings, empty_database: str
) -> None:
    unmigrated = changed(settings, catalog_database_url=empty_database)
    with pytest.raises(CatalogOutdatedError, match="cdn-pipeline migrate"), open_catalog(unmigrated):
        pass
    with open_unmigrated_catalog(unmigrated) as engine, engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1


def test_a_catalog_with_another_base_url_is_refused(settings: Settings) -> None:
    with (
        pytest.raises(CatalogOutdatedError, match="CDN_BASE_URL"),
        open_catalog(changed(settings, cdn_base_url="https://other.example")),
    ):
        pass


def test_the_embedded_databases_need_no_set_up_and_the_source_stays_read_only() -> None:
    with open_folder() as folder:
        embedded = Settings(_env_file=None, cdn_pipeline_var_dir=folder)  # type: ignore[call-arg]
        with open_catalog(embedded) as catalog, open_demo_database(embedded) as demo:
            with catalog.connect() as connection:
                assert connection.scalar(sa.text("SELECT base_url FROM cdn_delivery")) == "http://127.0.0.1:8000"
            with demo.begin() as connection:
                connection.execute(sa.text("CREATE TABLE profiles (id uuid)"))
            with open_source_database(embedded) as source, source.connect() as connection:
                assert connection.scalar(sa.text("SELECT count(*) FROM profiles")) == 0
                with pytest.raises(sa.exc.InternalError, match="read-only"):
                    connection.execute(sa.text("INSERT INTO profiles VALUES (gen_random_uuid())"))


def test_the_demo_does_not_write_into_a_real_application_database(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="unset SOURCE_DATABASE_URL"), open_demo_database(settings):
        pass


def test_every_transaction_of_the_source_is_read_only_on_a_connection_used_before(settings: Settings) -> None:
    with open_source_database(settings) as source:
        for _ in range(2):
            with source.begin() as connection:
                assert connection.scalar(sa.text("SHOW transaction_read_only")) == "on"


def test_connections_notice_a_dead_network_path(settings: Settings) -> None:
    with open_catalog(settings) as engine, engine.connect() as connection:
        parameters = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
        assert int(parameters["keepalives_idle"]) <= 10


# -- transactions --


def counter(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE counter AS SELECT n, 0 AS value FROM generate_series(1, 2) AS n"))


def values(engine: sa.Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT value FROM counter ORDER BY n")))


def add_one(connection: sa.Connection, to: int) -> None:
    connection.execute(sa.text("UPDATE counter SET value = value + 1 WHERE n = :n"), {"n": to})


def test_a_transaction_commits_and_gives_what_the_work_gave(catalog: sa.Engine) -> None:
    counter(catalog)
    assert transaction(catalog, lambda connection: add_one(connection, 1) or "done") == "done"  # type: ignore[func-returns-value]
    assert values(catalog) == [1, 0]


def test_a_failed_transaction_leaves_nothing_and_is_not_tried_again(catalog: sa.Engine) -> None:
    counter(catalog)
    attempts = []

    def work(connection: sa.Connection) -> None:
        attempts.append(1)
        add_one(connection, 1)
        connection.execute(sa.text("SELECT 1 / 0"))

    with pytest.raises(sa.exc.DataError):
        transaction(catalog, work)
    assert (values(catalog), len(attempts)) == ([0, 0], 1)


def test_the_victim_of_a_deadlock_runs_again(catalog: sa.Engine) -> None:
    counter(catalog)
    both_have_one = threading.Barrier(2)
    attempts = []

    def cross(first: int, second: int) -> None:
        def work(connection: sa.Connection) -> None:
            attempts.append(first)
            connection.execute(sa.text("SET LOCAL deadlock_timeout = '20ms'"))
            add_one(connection, first)
            if attempts.count(first) == 1:
                both_have_one.wait(10)
            add_one(connection, second)

        transaction(catalog, work)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(cross, 1, 2), pool.submit(cross, 2, 1)]:
            done.result()
    assert (values(catalog), len(attempts)) == ([2, 2], 3)


# -- URLs --


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_the_driver_is_psycopg_3_however_the_url_is_written(scheme: str) -> None:
    assert with_driver(f"{scheme}://u:p@h/db?sslmode=require") == "postgresql+psycopg://u:p@h/db?sslmode=require"


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/db", "u:hunter2@h/db", "", "sqlite:///hunter2"])
def test_another_database_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://") as caught:
        with_driver(url)
    assert "hunter2" not in str(caught.value)


def test_the_folder_of_the_embedded_database_is_under_var(tmp_path: Path) -> None:
    assert Settings(_env_file=None, cdn_pipeline_var_dir=tmp_path).embedded_catalog  # type: ignore[call-arg]


# -- a server that says nothing --


def test_a_statement_that_a_stopped_server_never_answers_is_given_up_and_the_next_connection_works(
    catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_SILENCE_SECONDS", 0.2)
    limit_statements(catalog, 1)
    with catalog.connect() as connection:
        backend = psutil.Process(connection.scalar(sa.text("SELECT pg_backend_pid()")))
        backend.suspend()
        try:
            with pytest.raises(sa.exc.OperationalError) as caught:
                connection.execute(sa.text("SELECT 1"))
        finally:
            backend.resume()
    assert is_away(caught.value)
    with catalog.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1


def test_a_statement_that_takes_too_long_is_cancelled_and_its_connection_goes_on(catalog: sa.Engine) -> None:
    limit_statements(catalog, 1)
    with catalog.connect() as connection:
        with pytest.raises(sa.exc.OperationalError, match="statement timeout"):
            connection.execute(sa.text("SELECT pg_sleep(60)"))
        connection.rollback()
        assert connection.scalar(sa.text("SELECT 1")) == 1
