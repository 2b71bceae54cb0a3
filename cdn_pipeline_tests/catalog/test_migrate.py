import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects.postgresql import insert

from cdn_pipeline.catalog import migrate as migrate_module
from cdn_pipeline.catalog.migrate import CatalogOutdatedError, migrate, require_current
from cdn_pipeline.catalog.tables import delivery, image_assets, image_jobs, image_renditions, metadata
from cdn_pipeline_tests.proof import clock as stopped_clock

BASE_URL = "https://cdn.example"


@pytest.fixture
def empty(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    yield engine
    engine.dispose()


def differences(engine: sa.Engine) -> Any:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "include_object": _is_ours}
        )
        return compare_metadata(context, metadata)


def _is_ours(_object: object, name: str | None, *_: object) -> bool:
    return name != "alembic_version"


def structure(engine: sa.Engine) -> Any:
    """Columns, constraints with their conditions, indexes with theirs, functions and views, as Postgres writes them."""
    queries = (
        """SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default
           FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'""",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'",
        "SELECT tablename, indexname, indexdef FROM pg_indexes "
        "WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
        "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    )
    with engine.connect() as connection:
        return [sorted(map(tuple, connection.execute(sa.text(query))), key=str) for query in queries]


def step(engine: sa.Engine, direction: str, to: str = "base") -> None:
    with engine.begin() as connection:
        config = migrate_module._alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head") if direction == "up" else command.downgrade(config, to)


def test_migrations_build_exactly_the_models(catalog: sa.Engine) -> None:
    assert differences(catalog) == []


def test_migrations_build_the_constraints_and_conditions_of_the_models(catalog: sa.Engine, empty: sa.Engine) -> None:
    metadata.create_all(empty)
    *migrated, _ = structure(catalog)
    *modelled, views = structure(empty)
    assert views == []
    view = {"cdn_image_urls"}
    assert [[row for row in rows if row[0] not in view] for rows in migrated] == modelled


def test_migrations_give_tables_the_storage_parameters_of_the_models(catalog: sa.Engine, empty: sa.Engine) -> None:
    metadata.create_all(empty)
    query = sa.text("""
        SELECT relname, reloptions FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND reloptions IS NOT NULL""")
    with catalog.connect() as migrated, empty.connect() as modelled:
        parameters = migrated.execute(query).all()
        assert parameters == modelled.execute(query).all()
    assert [table for table, _ in parameters] == ["cdn_image_assets"]


def test_up_down_and_up_again_gives_the_same_and_down_leaves_nothing(catalog: sa.Engine) -> None:
    before = structure(catalog)
    step(catalog, "down")
    assert structure(catalog) == [[], [], [], [], []]
    step(catalog, "up")
    assert structure(catalog) == before


def test_migrating_writes_the_base_url_and_a_second_time_changes_only_that(empty: sa.Engine) -> None:
    migrate(empty, "http://127.0.0.1:8000")
    before = structure(empty)
    migrate(empty, BASE_URL)
    assert structure(empty) == before
    with empty.connect() as connection:
        assert connection.execute(sa.select(delivery)).all() == [(True, BASE_URL)]


def test_two_migrations_at_once_are_one(empty: sa.Engine) -> None:
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(migrate, empty, BASE_URL) for _ in range(3)]:
            done.result()
    require_current(empty, BASE_URL)


def test_a_catalog_that_was_never_migrated_says_what_to_run(empty: sa.Engine) -> None:
    with pytest.raises(CatalogOutdatedError, match=r"version none.*run `cdn-pipeline migrate`"):
        require_current(empty, BASE_URL)


def test_another_base_url_says_what_to_run(empty: sa.Engine) -> None:
    migrate(empty, BASE_URL)
    with pytest.raises(CatalogOutdatedError, match=r"cdn\.example, CDN_BASE_URL says https://other.*migrate"):
        require_current(empty, "https://other.example")


# -- ids --


def new_ids(connection: sa.Connection, count: int) -> list[uuid.UUID]:
    query = sa.text("SELECT cdn_time_ordered_id() FROM generate_series(1, :count)")
    return list(connection.scalars(query, {"count": count}))


def milliseconds(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp()) * 1000")).scalar_one())


def test_ids_are_uuids_of_version_7_that_begin_with_the_time(catalog: sa.Engine) -> None:
    with catalog.connect() as connection:
        before, ids, after = milliseconds(connection), new_ids(connection, 10_000), milliseconds(connection)
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, uuid.RFC_4122)}
    assert all(before <= id_.int >> 80 <= after + 1 for id_ in ids)
    assert [id_.int >> 80 for id_ in ids] == sorted(id_.int >> 80 for id_ in ids)


def test_ids_of_one_moment_differ(empty: sa.Engine) -> None:
    stopped_clock.install(empty)
    migrate(empty, BASE_URL)
    with empty.connect() as connection:
        ids = new_ids(connection, 10_000)
    assert {id_.int >> 80 for id_ in ids} == {int(1000 * stopped_clock.START.timestamp())}
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("table", [image_assets, image_jobs, image_renditions])
def test_images_jobs_and_renditions_get_such_ids(catalog: sa.Engine, table: sa.Table) -> None:
    with catalog.begin() as connection:
        asset_id = add_image(connection, ("256", "webp", "current"))
        add_job(connection, asset_id)
        assert connection.scalars(sa.select(table.c.id)).one().version == 7


def test_a_catalog_of_random_ids_keeps_them(catalog: sa.Engine) -> None:
    step(catalog, "down", to="0009")
    with catalog.begin() as connection:
        old = add_image(connection, ("256", "webp", "current"))
    step(catalog, "up")
    with catalog.connect() as connection:
        assert (connection.scalars(sa.select(image_assets.c.id)).one(), old.version) == (old, 4)


# -- the view --


def add_image(connection: sa.Connection, *renditions: tuple[str, str, str]) -> uuid.UUID:
    """A post's image with these renditions: (size, format, state)."""
    values = {
        "collection": "instagram",
        "shard": "00",
        "owner_id": "owner",
        "source_type": "post_thumbnail",
        "source_id": "post",
        "media_id": "123",
        "source_url": "https://x",
        "identity": "file:A",
        "rank": 1,
        "observed_at": sa.func.now(),
    }
    asset_id = connection.execute(insert(image_assets).values(values).returning(image_assets.c.id)).scalar_one()
    for number, (size, image_format, state) in enumerate(renditions):
        path = f"/th/ig/owner/123/{size}/{number}.{image_format}"
        connection.execute(
            insert(image_renditions).values(
                asset_id=asset_id,
                size_name=size,
                format=image_format,
                width=int(size),
                height=int(size) // 2,
                file_size=1000 + number,
                content_hash=f"{number}" * 64,
                path=path,
                original_sha256="0" * 64,
                recipe="r",
                recipe_version=1,
                encoder="e",
                state=state,
            )
        )
    return uuid.UUID(str(asset_id))


def add_job(connection: sa.Connection, asset_id: uuid.UUID) -> None:
    values = {"collection": "instagram", "shard": "00", "job_type": "ingest", "source_url": "https://x"}
    connection.execute(insert(image_jobs).values(asset_id=asset_id, **values))


def test_the_view_has_the_contracts_columns_in_one_row_per_image(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        asset_id = add_image(connection, ("256", "webp", "current"), ("512", "webp", "current"))
        row = connection.execute(sa.text("SELECT * FROM cdn_image_urls")).mappings().one()
    base = "http://127.0.0.1:8000"
    assert dict(row) == {
        "asset_id": asset_id,
        "collection": "instagram",
        "source_type": "post_thumbnail",
        "source_id": "post",
        "owner_id": "owner",
        "media_id": "123",
        "taken_at": None,
        "processing_status": "pending",
        "cdn_path_256": "/th/ig/owner/123/256/0.webp",
        "cdn_url_256": f"{base}/th/ig/owner/123/256/0.webp",
        "content_hash_256": "0" * 64,
        "width_256": 256,
        "height_256": 128,
        "file_size_256": 1000,
        "cdn_path_512": "/th/ig/owner/123/512/1.webp",
        "cdn_url_512": f"{base}/th/ig/owner/123/512/1.webp",
        "content_hash_512": "1" * 64,
        "width_512": 512,
        "height_512": 256,
        "file_size_512": 1001,
        "cdn_path_256_avif": None,
        "cdn_url_256_avif": None,
        "file_size_256_avif": None,
        "cdn_path_512_avif": None,
        "cdn_url_512_avif": None,
        "file_size_512_avif": None,
    }


def test_the_view_shows_only_what_is_current(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        add_image(
            connection,
            ("256", "webp", "superseded"),
            ("256", "webp", "current"),
            ("256", "webp", "stored"),
            ("256", "avif", "current"),
            ("512", "webp", "stored"),
        )
        row = connection.execute(sa.text("SELECT * FROM cdn_image_urls")).mappings().one()
    assert (row["cdn_path_256"], row["cdn_path_512"], row["cdn_url_512"]) == (
        "/th/ig/owner/123/256/1.webp",
        None,
        None,
    )


def test_an_image_without_renditions_is_a_row_without_urls(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        add_image(connection)
        row = connection.execute(sa.text("SELECT * FROM cdn_image_urls")).mappings().one()
    assert row["media_id"] == "123"
    assert {value for name, value in row.items() if name.endswith(("256", "512"))} == {None}


# -- what Postgres itself refuses --


def test_two_current_renditions_of_one_size_are_refused(catalog: sa.Engine) -> None:
    with catalog.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="uq_cdn_image_renditions_current"):
        add_image(connection, ("256", "webp", "current"), ("256", "webp", "current"))


def test_an_image_is_unique_by_source_and_media(catalog: sa.Engine) -> None:
    with catalog.connect() as connection:
        add_image(connection)
        with pytest.raises(sa.exc.IntegrityError, match="uq_cdn_image_assets_source_type_source_id_media_id"):
            add_image(connection)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("cdn_image_assets", "processing_status", "'lost'"),
        ("cdn_image_jobs", "status", "'lost'"),
        ("cdn_image_jobs", "job_type", "'other'"),
        ("cdn_image_jobs", "stage", "'other'"),
        ("cdn_image_jobs", "priority", "0"),
        ("cdn_image_jobs", "priority", "11"),
        ("cdn_image_renditions", "state", "'lost'"),
        ("cdn_delivery", "only_row", "false"),
    ],
)
def test_values_outside_the_contract_are_refused(catalog: sa.Engine, table: str, column: str, value: str) -> None:
    with catalog.connect() as connection:
        asset_id = add_image(connection, ("256", "webp", "current"))
        add_job(connection, asset_id)
        with pytest.raises(sa.exc.IntegrityError, match=f"ck_{table}_{column}"):
            connection.execute(sa.text(f"UPDATE {table} SET {column} = {value}"))


def test_an_image_takes_its_renditions_along(catalog: sa.Engine) -> None:
    with catalog.connect() as connection:
        add_image(connection, ("256", "webp", "current"))
        connection.execute(sa.delete(image_assets))
        assert connection.execute(sa.select(image_renditions)).all() == []
