"""Pages as they are answered: for whom, with which headers, and what the buttons do."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from html import unescape
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import sqlalchemy as sa
import time_machine
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from cdn_pipeline.api.app import openapi_document
from cdn_pipeline.api.pages.routes import router as pages
from cdn_pipeline.api.pages.sessions import SESSION_LASTS
from cdn_pipeline.api.pages.visits import local_path
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.stats import HourStats, write_hour
from cdn_pipeline.observe.unattended import DUE_SENSOR
from cdn_pipeline.queue.audit import latest_actions
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.instagram import SourceUrl
from cdn_pipeline_tests.api.apis import TOKEN, api
from cdn_pipeline_tests.api.pages.operators import NAME, csrf, message, press, sign_in
from cdn_pipeline_tests.postgres import connect
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    jobs,
    open_jobs,
    outcome,
    published,
    reference,
    see,
    session,
    source_url,
    take,
)

OWNER = "0b3c0d4e-8f3a-4f0e-9c53-1d2f8f7a6b5c"


@pytest.fixture
def client(settings: Settings, catalog: sa.Engine) -> Iterator[httpx.Client]:
    with api(settings) as client:
        yield client


def add_image(connection: sa.Connection, *, failure: FailureKind | None = None, detail: str = "", **more: str) -> str:
    """An image that is published, or failed with this kind; returns its id."""
    see(connection, reference(**{"owner": OWNER, **more}))  # type: ignore[arg-type]
    (job,) = take(connection)
    done = published(job) if failure is None else outcome(job, Verdict.FAILED, failure=failure, detail=detail)
    settle(connection, RUN, [done])
    return str(job.asset_id)


# -- who sees what --


def test_stories_of_images_want_a_sign_in_where_a_token_is_configured(
    client: httpx.Client, connection: sa.Connection
) -> None:
    image = add_image(connection)
    for path in (f"/images/{image}", f"/profiles/{OWNER}", "/search?q=x", "/failures/image_corrupt"):
        answer = client.get(path)
        assert (answer.status_code, urlsplit(answer.headers["location"]).path) == (303, "/sign-in")
    assert client.get("/").status_code == 200
    sign_in(client)
    assert client.get(f"/images/{image}").status_code == 200


def test_without_a_token_stories_are_told_without_what_signs_their_urls(
    settings: Settings, connection: sa.Connection
) -> None:
    signed = SourceUrl("https://cdn.example/a.jpg?oe=6543&oh=secret", "file:A", 1000, source_url().expires_at)
    see(connection, reference(signed, owner=OWNER))
    image = str(jobs(connection)[0]["asset_id"])
    with api(settings, admin_api_token=None) as client:
        for path in (f"/images/{image}", f"/profiles/{OWNER}"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "oh=secret" not in answer.text
        assert client.post("/sign-in", data={"token": ""}).status_code == 503
    with api(settings) as client:
        sign_in(client)
        assert "oh=secret" in client.get(f"/images/{image}").text


def test_a_source_url_that_no_browser_should_open_is_no_link(client: httpx.Client, connection: sa.Connection) -> None:
    hostile = SourceUrl("javascript:alert(1)", "file:A", 1000, None)
    see(connection, reference(hostile, owner=OWNER))
    sign_in(client)
    page = client.get(f"/profiles/{OWNER}").text
    assert 'href="javascript:' not in page


def test_an_expired_source_url_is_no_link(client: httpx.Client, connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=timedelta(days=1)), owner=OWNER))
    sign_in(client)
    assert "the source picture</a>" in client.get(f"/profiles/{OWNER}").text
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 s'"))
    assert "the source picture</a>" not in client.get(f"/profiles/{OWNER}").text


def test_what_a_host_or_a_file_says_is_text_and_never_markup(client: httpx.Client, connection: sa.Connection) -> None:
    hostile = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>"
    image = add_image(connection, failure=FailureKind.IMAGE_CORRUPT, detail=hostile)
    sign_in(client)
    for path in (f"/images/{image}", f"/profiles/{OWNER}", "/failures/image_corrupt", f"/search?q={hostile}"):
        page = client.get(path).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert hostile in unescape(page)


# -- the session --


def test_the_session_is_kept_from_scripts_and_from_other_sites(client: httpx.Client) -> None:
    cookies = sign_in(client).headers.get_list("set-cookie")
    (cookie,) = [each.lower() for each in cookies if "session=" in each]
    assert {"httponly", "samesite=strict", "path=/"} <= set(cookie.split("; "))
    assert "secure" not in cookie
    assert TOKEN.lower() not in cookie


def test_over_https_no_cookie_is_ever_sent_in_the_clear(client: httpx.Client) -> None:
    form = {"name": NAME, "token": TOKEN}
    answer = client.post("/sign-in", data=form, headers={"X-Forwarded-Proto": "https"})
    cookies = answer.headers.get_list("set-cookie")
    assert cookies
    assert all("secure" in cookie.lower() for cookie in cookies)


def test_whoever_has_another_token_or_no_name_is_not_signed_in(client: httpx.Client) -> None:
    for name, token in ((NAME, "another"), (NAME, ""), (NAME, "té"), ("", TOKEN), ("é", TOKEN), ("a" * 101, TOKEN)):
        answer = sign_in(client, name=name, token=token)
        assert answer.status_code == 401
        assert message(answer)
        assert not client.cookies


def test_a_session_ends_with_the_shift_and_with_the_token(settings: Settings, catalog: sa.Engine) -> None:
    with api(settings) as client:
        sign_in(client)
        cookie = dict(client.cookies)
        assert client.get("/search").status_code == 200
        with time_machine.travel(SESSION_LASTS + timedelta(minutes=1)):
            assert client.get("/search").status_code == 303
    with api(settings, admin_api_token="another") as other:
        other.cookies.update(cookie)
        assert other.get("/search").status_code == 303


def test_signing_out_ends_the_session(client: httpx.Client) -> None:
    sign_in(client)
    answer = client.post("/sign-out", data={"csrf": csrf(client)})
    assert answer.status_code == 303
    assert client.get("/search").status_code == 303


ACTIONS = ("retry", "retry-kind", "hold", "restore", "refresh")


def test_no_button_works_for_a_stranger_or_from_another_site(client: httpx.Client, connection: sa.Connection) -> None:
    see(connection, reference(owner=OWNER))
    before = jobs(connection)
    fields = {"job_id": str(before[0]["id"]), "kind": "image_corrupt", "profile_id": OWNER}
    for action in ACTIONS:
        assert client.post(f"/actions/{action}", data=fields).headers["location"].startswith("/sign-in")
    sign_in(client)
    for action in ACTIONS:
        for wrong in ({}, {"csrf": ""}, {"csrf": "é"}):
            assert client.post(f"/actions/{action}", data={**fields, **wrong}).status_code == 403
    assert jobs(connection) == before
    assert not latest_actions(connection, 1)


@given(st.text(max_size=60) | st.from_regex(r"[/\\]{0,3}[a-z:@./\\]{0,20}", fullmatch=True))
def test_a_sign_in_leads_to_no_other_site(path: str) -> None:
    found = local_path(path)
    assert found == "/" or found == path
    assert re.match(r"/(?![/\\])", found)
    assert not urlsplit(found).netloc


def test_a_form_that_is_none_is_refused(client: httpx.Client) -> None:
    assert client.post("/sign-in", content=b"\xff\xfe").status_code == 400
    assert client.post("/sign-in", content=b"a=" + b"b" * 20_000).status_code == 413


# -- buttons --


def test_a_retry_opens_the_failed_image_again_and_says_so(client: httpx.Client, connection: sa.Connection) -> None:
    image = add_image(connection, failure=FailureKind.IMAGE_CORRUPT)
    (job,) = jobs(connection)
    sign_in(client)
    assert f'value="{job["id"]}"' in client.get(f"/images/{image}").text
    answer = press(client, "retry", job_id=str(job["id"]), next=f"/images/{image}")
    assert answer.url.path == f"/images/{image}"
    assert message(answer).startswith("Images: 1 opened again")
    (opened,) = open_jobs(connection)
    assert (opened["job_type"], opened["priority"]) == ("retry", 2)
    (entry,) = latest_actions(connection, 10)
    assert (entry.actor, entry.action, entry.affected) == (NAME, "retry-failed", 1)
    assert message(client.get(f"/images/{image}")) == ""  # said once


def test_all_of_one_kind_are_retried_and_no_others(client: httpx.Client, connection: sa.Connection) -> None:
    kinds = [FailureKind.IMAGE_CORRUPT, FailureKind.SOURCE_GONE, FailureKind.IMAGE_CORRUPT]
    for number, kind in enumerate(kinds):
        add_image(connection, failure=kind, image=str(number))
    sign_in(client)
    answer = press(client, "retry-kind", kind="image_corrupt")
    assert "2 opened again" in message(answer)
    assert len(open_jobs(connection)) == 2
    again = press(client, "retry-kind", kind="image_corrupt")
    assert message(again) == "There is nothing to try again."


def test_what_waits_for_a_later_attempt_after_that_kind_is_due_now(
    client: httpx.Client, connection: sa.Connection
) -> None:
    see(connection, reference(image="1"), reference(image="2"))
    kinds = (FailureKind.SOURCE_ERROR, FailureKind.RATE_LIMITED)
    settle(
        connection,
        RUN,
        [
            outcome(job, Verdict.RETRYING, failure=kind, retry_in_seconds=900)
            for job, kind in zip(take(connection), kinds, strict=True)
        ],
    )
    sign_in(client)
    assert "1 due now instead of later" in message(press(client, "retry-kind", kind="source_error"))
    assert len(take(connection)) == 1
    assert message(press(client, "retry-kind", kind="source_error")) == "There is nothing to try again."


def test_nothing_to_retry_is_said(client: httpx.Client, connection: sa.Connection) -> None:
    sign_in(client)
    assert message(press(client, "retry-kind", kind="image_corrupt")) == "There is nothing to try again."


def test_the_queue_is_held_and_restored_by_priority(client: httpx.Client, connection: sa.Connection) -> None:
    see(connection, reference(image="1"), reference(image="2", source_type="post_thumbnail"))
    sign_in(client)
    assert message(press(client, "hold", priority="4")).startswith("Jobs put on hold: 1.")
    assert {job["priority"]: job["held_at"] is not None for job in jobs(connection)} == {2: False, 4: True}
    assert message(press(client, "hold")).startswith("Jobs put on hold: 1.")
    assert message(press(client, "restore")).startswith("Jobs let go: 2.")
    assert [entry.action for entry in latest_actions(connection, 9)] == ["queue-restore", "queue-clear", "queue-clear"]


def test_a_refresh_is_opened_once_and_written_down(client: httpx.Client, connection: sa.Connection) -> None:
    add_image(connection)
    sign_in(client)
    assert "fetched again" in message(press(client, "refresh", profile_id=OWNER, next=f"/profiles/{OWNER}"))
    assert "open already" in message(press(client, "refresh", profile_id=OWNER))
    assert "No picture" in message(press(client, "refresh", profile_id=str(uuid.uuid4())))
    assert [entry.action for entry in latest_actions(connection, 9)] == ["refresh"]


def test_where_nothing_will_start_a_run_the_buttons_say_what_to_do(
    client: httpx.Client, connection: sa.Connection
) -> None:
    for number in range(2):
        add_image(connection, failure=FailureKind.IMAGE_CORRUPT, image=str(number))
    sign_in(client)
    pressed = {
        "retry": {"job_id": str(jobs(connection)[0]["id"])},
        "retry-kind": {"kind": "image_corrupt"},
        "refresh": {"profile_id": OWNER},
    }
    for action, fields in pressed.items():
        told = message(press(client, action, **fields))
        assert "due_images_sensor was never seen" in told
        assert "<code>dagster job execute" in told
    assert "due_images_sensor was never seen" in client.get(f"/profiles/{OWNER}").text


def test_where_the_sensor_looks_the_buttons_leave_the_run_to_it(
    client: httpx.Client, connection: sa.Connection
) -> None:
    add_image(connection, failure=FailureKind.IMAGE_CORRUPT)
    beat(connection, DUE_SENSOR)
    sign_in(client)
    assert message(press(client, "retry-kind", kind="image_corrupt")) == "Images: 1 opened again and due now."
    assert "the sensor asks for a run in a minute" in message(press(client, "refresh", profile_id=OWNER))


def test_a_form_without_sense_is_refused(client: httpx.Client) -> None:
    sign_in(client)
    for action, fields in (("retry", {"job_id": "x"}), ("retry-kind", {"kind": "x"}), ("hold", {"priority": "11"})):
        assert press(client, action, **fields).status_code == 400


# -- finding --


def test_the_search_leads_to_what_is_meant(client: httpx.Client, connection: sa.Connection) -> None:
    image = add_image(connection)
    sign_in(client)
    assert client.get("/search", params={"q": image}).headers["location"] == f"/images/{image}"
    add_image(connection, image="2", source_type="post_thumbnail")
    assert client.get("/search", params={"q": OWNER}).headers["location"] == f"/profiles/{OWNER}"
    listed = client.get("/search", params={"q": "avatar"}).text
    assert f"/images/{image}" in listed
    nothing = client.get("/search", params={"q": "nobody"})
    assert nothing.status_code == 404
    assert "the id of a medium" in nothing.text


def test_what_is_not_there_is_told(client: httpx.Client, catalog: sa.Engine) -> None:
    sign_in(client)
    for path in ("/images/x", f"/images/{OWNER}", "/profiles/nobody", "/failures/x", "/static/0/x"):
        assert client.get(path).status_code == 404


# -- the overview --


def test_the_overview_says_what_is_wrong_and_what_to_do_first(client: httpx.Client, connection: sa.Connection) -> None:
    for number in range(25):
        add_image(connection, failure=FailureKind.IMAGE_CORRUPT if number < 10 else None, image=str(number))
    start = catalog_time(connection).replace(minute=0, second=0, microsecond=0)
    write_hour(connection, HourStats(start.date(), start.hour, 10, 1, 80, 40, 20, 1, 1, {"source_gone": 1}, 5, 50))
    connection.execute(sa.text("UPDATE cdn_processing_stats SET date = date - 1"))
    page = client.get("/").text
    assert "Unhealthy" in page
    assert FailureKind.IMAGE_CORRUPT.advice in unescape(page)
    assert 'href="/runbook#failure-kinds"' in page
    assert 'href="/failures/image_corrupt"' in page
    assert "15 of 25 published, 0 due, 10 failed" in page
    assert "<rect" in page


def test_work_that_nobody_is_known_to_do_is_the_first_thing_to_do(settings: Settings, catalog: sa.Engine) -> None:
    nothing = "there is nothing to do"
    with session(catalog) as connection:
        with api(settings) as client:
            assert nothing in client.get("/").text
        see(connection, reference(owner=OWNER))
        with api(settings) as client:
            page = client.get("/").text
        assert nothing not in page
        assert "Work is due and nobody does it" in page
        assert "due_images_sensor was never seen" in page
        assert "Healthy" in page
        beat(connection, DUE_SENSOR)
        with api(settings) as client:
            assert nothing in client.get("/").text


def test_how_an_hour_gets_counted_is_told_until_one_is(client: httpx.Client, connection: sa.Connection) -> None:
    page = client.get("/").text
    assert "dagster schedule start hourly_stats_schedule" in page
    next_count = catalog_time(connection).replace(minute=5) + timedelta(hours=1)
    assert f"the present one at {next_count:%H:%M} UTC" in page


def test_a_failure_that_only_another_version_knows_has_no_page_and_no_button(
    client: httpx.Client, connection: sa.Connection
) -> None:
    image = add_image(connection, failure=FailureKind.IMAGE_CORRUPT)
    for table in ("cdn_image_assets", "cdn_image_jobs"):
        connection.execute(sa.text(f"UPDATE {table} SET failure_kind = 'of_tomorrow'"))
    sign_in(client)
    page = client.get("/").text
    assert "of tomorrow" in page
    assert "/failures/of_tomorrow" not in page
    assert 'action="/actions/retry-kind"' not in page
    assert client.get(f"/images/{image}").status_code == 200


def test_shards_lead_to_their_partition_where_dagsters_pages_are_known(settings: Settings, catalog: sa.Engine) -> None:
    with api(settings, dagster_graphql_url="http://dagster.example/graphql") as client:
        page = client.get("/").text
        assert 'href="http://dagster.example/assets/published_images?view=partitions&amp;partition=3f"' in page
    with api(settings) as client:
        assert "Set DAGSTER_GRAPHQL_URL" in client.get("/").text


def test_every_section_of_the_runbook_that_a_page_may_name_is_there(client: httpx.Client) -> None:
    page = client.get("/runbook").text
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {"failure-kinds", "what-runs-by-itself", "a-host-does-not-answer", "queue_depth", "images_lost"} <= anchors


def test_pages_allow_no_inline_script_and_are_kept_by_nobody(client: httpx.Client) -> None:
    for path in ("/", "/sign-in", "/runbook", "/images/x"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=", answer.text)


def test_static_files_are_kept_for_ever_because_their_url_names_their_content(client: httpx.Client) -> None:
    urls = re.findall(r'(?:href|src)="(/static/[^"]+)"', client.get("/").text)
    assert len(urls) == 3
    for url in urls:
        answer = client.get(url)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        name = url.rpartition("/")[2]
        assert client.get(f"/static/0000000000000000/{name}").status_code == 404


def test_pages_are_no_part_of_the_openapi_document() -> None:
    documented = set(openapi_document()["paths"])
    assert documented
    assert not documented & {route.path for route in pages.routes if isinstance(route, APIRoute)}


def test_while_the_catalog_is_away_pages_say_so(
    settings: Settings, catalog: sa.Engine, postgres_server: EmbeddedPostgres
) -> None:
    with api(settings) as client, connect(postgres_server.url("postgres")) as server:
        sign_in(client)
        name = catalog.url.database or ""
        with away(server, name):
            overview, image = client.get("/"), client.get(f"/images/{OWNER}")
        assert overview.status_code == 200
        assert "Unhealthy" in overview.text
        assert "Nothing can be counted while the catalog is away" in overview.text
        assert image.status_code == 503
        assert "The catalog does not answer" in image.text


@contextmanager
def away(server: psycopg.Connection, name: str) -> Iterator[None]:
    """Nobody is connected with the database of this name, and nobody can be."""
    database = sql.Identifier(name)
    server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(database))
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    yield
    server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(database))
