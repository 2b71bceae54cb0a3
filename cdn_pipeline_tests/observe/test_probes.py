"""Probes of published URLs, against a stand-in for the CDN."""

import asyncio
import math
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from aiohttp import web
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdn_pipeline.observe.probes import (
    Delivery,
    Percentiles,
    Probe,
    Problem,
    Target,
    draw_targets,
    latest_delivery,
    probe_published,
    probe_targets,
    problem_of,
    write_probes,
)
from cdn_pipeline.observe.ttfb import Answer, ask_twice
from cdn_pipeline_tests.observe.cdn import Cdn, Fault, picture, running_cdn
from cdn_pipeline_tests.queue.catalogs import session
from cdn_pipeline_tests.upkeep.mirrored import folder_stores, mirror

IMAGES = 5
PATHS = 2 * IMAGES


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


@pytest.fixture
def cdn(connection: sa.Connection, tmp_path: Path) -> Iterator[Cdn]:
    """In front of some published images; all of them have two sizes."""
    for image in range(IMAGES):
        mirror(connection, folder_stores(tmp_path), f"picture {image}", image=str(image))
    with running_cdn(tmp_path / "objects") as cdn:
        yield cdn


def probed(catalog: sa.Engine, cdn: Cdn, **options: int) -> Delivery:
    assert probe_published(catalog, cdn.base_url, **options)
    with catalog.connect() as connection:
        delivery = latest_delivery(connection)
    assert delivery
    return delivery


def some_path(connection: sa.Connection) -> str:
    return draw_targets(connection, 1)[0].path


def test_before_the_first_probe_nothing_is_known(connection: sa.Connection) -> None:
    assert latest_delivery(connection) is None


def test_where_nothing_is_published_nothing_is_probed(catalog: sa.Engine) -> None:
    assert probe_published(catalog, "http://127.0.0.1:9") == 0


def test_every_url_is_asked_for_cold_and_warm_and_gives_its_picture(catalog: sa.Engine, cdn: Cdn) -> None:
    delivery = probed(catalog, cdn)
    assert sorted(cdn.requests) == sorted(2 * list(set(cdn.requests)))
    assert (delivery.n, delivery.broken, delivery.samples) == (PATHS, 0, ())
    assert delivery.cold
    assert delivery.warm
    assert delivery.cold.n == delivery.warm.n == PATHS
    assert 0 < delivery.cold.p50 <= delivery.cold.p95 <= delivery.cold.p99


def test_hits_and_misses_of_first_requests_are_told_apart(catalog: sa.Engine, cdn: Cdn) -> None:
    first, second = probed(catalog, cdn), probed(catalog, cdn)
    assert first.miss
    assert second.hit
    assert (first.hit, first.miss.n, first.hit_ratio) == (None, PATHS, 0)
    assert (second.hit.n, second.miss, second.hit_ratio) == (PATHS, None, 1)


def test_without_a_word_of_the_cache_there_is_no_hit_ratio(catalog: sa.Engine, cdn: Cdn) -> None:
    cdn.tells_cache = False
    delivery = probed(catalog, cdn)
    assert (delivery.hit, delivery.miss, delivery.hit_ratio) == (None, None, None)


def test_a_server_that_closes_its_connections_is_never_timed_warm(catalog: sa.Engine, cdn: Cdn) -> None:
    cdn.keeps_connections = False
    delivery = probed(catalog, cdn)
    assert delivery.cold
    assert (delivery.broken, delivery.cold.n, delivery.warm, delivery.share_in_time) == (0, PATHS, None, None)


def _cut_off(data: bytes) -> web.StreamResponse:
    response = picture(data[:-1])
    response.headers["Content-Length"] = str(len(data))
    response.force_close()
    return response


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda _: web.Response(status=404), "another status than 200 (404)"),
        (lambda _: web.Response(status=302, headers={"Location": "/elsewhere"}), "another status than 200 (302)"),
        (lambda data: picture(data + b"!"), "other bytes"),
        (lambda data: picture(data, content_type="text/html"), "another content type"),
        (lambda data: picture(data, cache_control="private, max-age=60"), "headers that keep caches from it"),
        (_cut_off, "no answer"),
    ],
)
def test_a_url_that_fails_twice_is_broken_and_named(
    catalog: sa.Engine, connection: sa.Connection, cdn: Cdn, fault: Fault, words: str
) -> None:
    path = some_path(connection)
    cdn.faults[path] = [fault] * 4
    delivery = probed(catalog, cdn)
    assert (delivery.n, delivery.broken, delivery.samples) == (PATHS, 1, (f"{path}: {words}",))
    assert delivery.cold
    assert delivery.cold.n == PATHS - 1


def test_damaged_bytes_are_seen_also_in_the_copy_that_the_cache_has_made(
    catalog: sa.Engine, connection: sa.Connection, cdn: Cdn
) -> None:
    path = some_path(connection)
    cdn.copies[path] = b"damaged"
    assert probed(catalog, cdn).samples == (f"{path}: {Problem.BYTES}",)


def test_what_fails_once_is_not_broken(catalog: sa.Engine, connection: sa.Connection, cdn: Cdn) -> None:
    cdn.faults[some_path(connection)] = [lambda _: web.Response(status=503)]
    assert probed(catalog, cdn).broken == 0


def test_where_nobody_answers_every_url_is_broken(catalog: sa.Engine, cdn: Cdn) -> None:
    cdn.base_url = "http://127.0.0.1:9"
    delivery = probed(catalog, cdn)
    assert (delivery.n, delivery.broken, delivery.cold, delivery.share_in_time) == (PATHS, PATHS, None, None)
    assert delivery.samples[0].endswith("no answer")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE cdn_image_renditions SET state = 'superseded', superseded_at = now() WHERE path = :path",
        "DELETE FROM cdn_image_renditions WHERE path = :path",
    ],
    ids=["superseded", "erased"],
)
def test_a_rendition_that_goes_between_draw_and_request_is_not_broken(
    catalog: sa.Engine, connection: sa.Connection, cdn: Cdn, change: str
) -> None:
    path = some_path(connection)

    def go(asked: str) -> None:
        if asked == path:
            (cdn.folder / path.lstrip("/")).unlink(missing_ok=True)
            with catalog.begin() as other:
                other.execute(sa.text(change), {"path": path})

    cdn.before = go
    delivery = probed(catalog, cdn)
    assert (delivery.n, delivery.broken) == (PATHS - 1, 0)
    rows = connection.scalars(sa.text("SELECT path FROM cdn_delivery_probes")).all()
    assert path not in rows


def test_an_erasure_waits_for_probes_that_are_being_written(catalog: sa.Engine, cdn: Cdn) -> None:
    with catalog.begin() as writing, catalog.connect() as erasing:
        targets = draw_targets(writing, 1)
        assert write_probes(writing, [Probe(targets[0].path)]) == 1
        erasing.execute(sa.text("SET lock_timeout = '50ms'"))
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            erasing.execute(sa.text("DELETE FROM cdn_image_renditions WHERE path = :path"), {"path": targets[0].path})


def test_a_round_ends_when_its_time_is_over(
    connection: sa.Connection, cdn: Cdn, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = draw_targets(connection, 3)

    async def silent_once(url: str, tls: ssl.SSLContext) -> tuple[Answer, Answer]:
        if url.endswith(targets[0].path):
            await asyncio.Event().wait()
        return await ask_twice(url, tls)

    monkeypatch.setattr("cdn_pipeline.observe.probes._ROUND_SECONDS", 1.0)
    monkeypatch.setattr("cdn_pipeline.observe.probes.ask_twice", silent_once)
    done = asyncio.run(probe_targets(cdn.base_url, targets))
    assert {probe.path for probe in done} == {target.path for target in targets[1:]}


# -- the sample --


def test_half_of_a_sample_was_published_last(connection: sa.Connection, cdn: Cdn) -> None:
    connection.execute(sa.text("UPDATE cdn_image_renditions SET published_at = now() - interval '1 day'"))
    latest = set(
        connection.scalars(
            sa.text("""
                UPDATE cdn_image_renditions SET published_at = now()
                WHERE asset_id = (SELECT id FROM cdn_image_assets WHERE source_id = '3') RETURNING path
            """)
        )
    )
    for _ in range(10):
        drawn = [target.path for target in draw_targets(connection, 4)]
        assert set(drawn[:2]) == latest
        assert len(set(drawn)) == 4


def test_the_other_half_is_drawn_from_everything_that_is_current(connection: sa.Connection, cdn: Cdn) -> None:
    connection.execute(sa.text("DELETE FROM cdn_image_jobs"))  # nobody knows what was published last
    connection.execute(
        sa.text("""
            UPDATE cdn_image_renditions r SET id = CAST(rpad(to_hex(numbered.number * 25), 32, '0') AS uuid)
            FROM (SELECT id, row_number() OVER () AS number FROM cdn_image_renditions) AS numbered
            WHERE numbered.id = r.id
        """)
    )
    gone = some_path(connection)
    connection.execute(
        sa.text("UPDATE cdn_image_renditions SET state = 'superseded' WHERE path = :path"), {"path": gone}
    )
    drawn = {target.path for _ in range(300) for target in draw_targets(connection, 2)}
    assert len(drawn) == PATHS - 1
    assert gone not in drawn


def test_a_small_catalog_is_probed_whole(connection: sa.Connection, cdn: Cdn) -> None:
    targets = draw_targets(connection, 200)
    assert len({target.path for target in targets}) == len(targets) == PATHS
    assert {target.content_type for target in targets} == {"image/webp"}


# -- what is right --


@pytest.mark.parametrize(
    ("header", "is_right"),
    [
        ("public, max-age=31536000, immutable", True),
        ("public, max-age=0, s-maxage=31536000, immutable", True),
        ("max-age=604800", True),  # a rule of the CDN
        ("public, s-maxage=60", True),
        (None, False),
        ("", False),
        ("public", False),
        ("max-age=0", False),
        ("max-age=31536000, private", False),
        ("No-Store, max-age=31536000", False),
        ("max-age=forever", False),
    ],
)
def test_headers_let_caches_keep_a_picture(header: str | None, is_right: bool) -> None:
    answer = Answer(200, "hash", "image/webp", header, None, 1.0, True)
    expected = None if is_right else Problem.CACHE_CONTROL
    assert problem_of(answer, Target("/a.webp", "hash", "image/webp")) is expected


# -- figures --

milliseconds = st.lists(
    st.tuples(st.integers(1, 2000), st.sampled_from([None, "hit", "miss", "expired", "updating"])),
    min_size=1,
    max_size=60,
)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(measured=milliseconds)
def test_percentiles_are_nearest_ranks_of_the_latest_round(
    connection: sa.Connection, measured: list[tuple[int, str | None]]
) -> None:
    connection.execute(sa.text("TRUNCATE cdn_delivery_probes"))
    insert = sa.text("""
        INSERT INTO cdn_delivery_probes (probed_at, path, status, cold_ms, warm_ms, cold_cache)
        SELECT now() - CAST(:age AS interval), '/', 200, ms, ms, cache
        FROM unnest(CAST(:ms AS real[]), CAST(:caches AS text[])) AS t(ms, cache)
    """)
    times, caches = [ms for ms, _ in measured], [cache for _, cache in measured]
    connection.execute(insert, {"age": "1 hour", "ms": [9999.0], "caches": ["miss"]})
    connection.execute(insert, {"age": "0", "ms": times, "caches": caches})
    delivery = latest_delivery(connection)
    assert delivery
    assert delivery.cold == delivery.warm == _percentiles(times)
    assert delivery.hit == _percentiles([ms for ms, cache in measured if cache in ("hit", "updating")])
    assert delivery.miss == _percentiles([ms for ms, cache in measured if cache in ("miss", "expired")])
    assert delivery.share_in_time == sum(ms < 150 for ms in times) / len(times)


def _percentiles(times: list[int]) -> Percentiles | None:
    if not times:
        return None
    ordered = sorted(times)
    return Percentiles(len(times), *(ordered[math.ceil(len(times) * share) - 1] for share in (0.5, 0.95, 0.99)))
