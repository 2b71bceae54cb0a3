"""`rollback-drill` on a running API: off, legacy URLs, on again, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from aiohttp import web

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.queue.audit import latest_actions
from cdn_pipeline.queue.delivery_policy import read_policy, set_percentage, switch_off
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep import rollback_drill
from cdn_pipeline_tests.api.apis import api
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.engine.runs import run
from cdn_pipeline_tests.world import SmallWorld, World


@dataclass(frozen=True, slots=True)
class Site:
    """A world whose pictures are published, and the API in front of it."""

    world: World
    client: httpx.Client

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")


@pytest.fixture
def site(settings: Settings, small_world: SmallWorld, catalog: sa.Engine) -> Iterator[Site]:
    world = small_world(profiles=2, posts=2)
    assert run(settings).published > 0
    with api(settings) as client:
        yield Site(world, client)


@contextmanager
def stubborn(site: Site) -> Iterator[str]:
    """An API that goes on answering what it answered before."""
    found = site.client.get("/api/v1/creators/ig/media", params={"profile_id": list(map(str, site.world.profile_ids))})
    body = found.content

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", answer)])
    with in_thread(listening(application)) as url:
        yield url


def test_a_rollback_works_and_is_undone(invoke: Invoke, connection: sa.Connection, site: Site) -> None:
    result = invoke("rollback-drill", "--api-url", site.url, "--verify-legacy-urls")
    assert result.exit_code == 0, result.output
    for words in ("have CDN URLs", "answers no CDN URL any more", "give their picture", "answers the CDN URLs again"):
        assert words in result.output
    assert "Passed: a rollback takes less than 5 minutes" in result.output
    assert read_policy(connection).is_on
    assert [entry.action for entry in latest_actions(connection, 9)] == ["cdn-on", "cdn-off"]


def test_legacy_urls_that_are_dead_at_their_source_fail_the_drill(
    invoke: Invoke, connection: sa.Connection, site: Site
) -> None:
    for path in site.world.origin.requests.by_path():
        site.world.origin.delete_picture(path)
    result = invoke("rollback-drill", "--api-url", site.url, "--verify-legacy-urls")
    assert result.exit_code == 1
    assert " 0 of " in result.output
    assert "Failed" in result.output
    assert read_policy(connection).is_on


def test_an_origin_that_is_not_there_is_named_in_full(
    invoke: Invoke, connection: sa.Connection, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    move = "UPDATE cdn_image_assets SET source_url = replace(source_url, :base, 'http://127.0.0.1:9')"
    connection.execute(sa.text(move), {"base": site.world.origin.base_url})
    result = invoke("rollback-drill", "--api-url", site.url, "--verify-legacy-urls")
    assert result.exit_code == 1
    words = "No answer from any of them: is the origin running at http://127.0.0.1:9?"
    assert words in " ".join(result.output.split())
    for warning in caplog.messages:
        assert warning.endswith("]")  # aiohttp's words have not been cut
    assert read_policy(connection).is_on


def test_without_living_legacy_urls_there_is_nothing_to_fall_back_to(
    invoke: Invoke, connection: sa.Connection, site: Site
) -> None:
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 hour'"))
    result = invoke("rollback-drill", "--api-url", site.url)
    assert result.exit_code == 1
    assert "0 of " in result.output


def test_an_api_that_does_not_obey_fails_the_drill_and_the_switch_is_undone(
    invoke: Invoke, connection: sa.Connection, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback_drill, "_OBEYS_WITHIN", 0.5)
    with stubborn(site) as url:
        result = invoke("rollback-drill", "--api-url", url)
    assert result.exit_code == 1
    assert "does it serve this catalog?" in result.output
    assert read_policy(connection).is_on


# Where tests run in the background, their children would ignore Ctrl-C.
_DRILL = """
import signal
from cdn_pipeline.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.parametrize(("number", "is_on"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGKILL, False)])
def test_however_it_ends_the_cdn_comes_back(
    connection: sa.Connection,
    site: Site,
    environment: Mapping[str, str],
    tmp_path: Path,
    number: signal.Signals,
    is_on: bool,
) -> None:
    with stubborn(site) as url:
        command = [sys.executable, "-c", _DRILL, "rollback-drill", "--duration", "60", "--api-url", url]
        drill = subprocess.Popen(command, env={**os.environ, **environment}, cwd=tmp_path, stdout=subprocess.DEVNULL)
        try:
            while read_policy(connection).is_on:  # pytest's time limit bounds it
                assert drill.poll() is None
                time.sleep(0.05)
            drill.send_signal(number)
            assert drill.wait(30) != 0
        finally:
            if drill.poll() is None:
                drill.kill()
    policy = read_policy(connection)
    assert policy.is_on == is_on
    if not is_on:  # nobody could undo it: it ends by itself
        assert policy.off_since
        assert policy.off_until
        assert (policy.off_until - policy.off_since).total_seconds() == 60


def test_a_signal_at_the_very_end_of_switching_off_has_it_switched_on_again(
    invoke: Invoke, connection: sa.Connection, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([True])

    def interrupted(engine: sa.Engine, work: Callable[[sa.Connection], bool | None]) -> bool | None:
        result = transaction(engine, work)
        if next(calls, False):
            assert not read_policy(connection).is_on
            raise SystemExit(143)
        return result

    monkeypatch.setattr(rollback_drill, "transaction", interrupted)
    assert invoke("rollback-drill", "--api-url", site.url).exit_code == 143
    assert next(calls, None) is None
    assert read_policy(connection).is_on


def test_somebody_who_switches_meanwhile_is_not_overruled(
    invoke: Invoke, connection: sa.Connection, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = rollback_drill.RollbackDrill._ask

    async def ask_while_an_operator_switches(drill: rollback_drill.RollbackDrill, urls: list[str]) -> object:
        switch_off(connection, "operator", expires_in=None)
        return await ask(drill, urls)

    monkeypatch.setattr(rollback_drill.RollbackDrill, "_ask", ask_while_an_operator_switches)
    result = invoke("rollback-drill", "--api-url", site.url, "--verify-legacy-urls")
    assert result.exit_code == 1
    assert "somebody has switched since" in result.output
    assert not read_policy(connection).is_on


def test_a_cdn_that_is_off_already_is_left_alone(invoke: Invoke, connection: sa.Connection, site: Site) -> None:
    switch_off(connection, "operator", expires_in=None)
    result = invoke("rollback-drill", "--api-url", site.url)
    assert result.exit_code == 2
    assert "switched off already" in result.output
    assert not read_policy(connection).is_on


def test_with_nobody_on_the_cdn_there_is_nothing_to_rehearse(
    invoke: Invoke, connection: sa.Connection, site: Site
) -> None:
    set_percentage(connection, "operator", 0)
    result = invoke("rollback-drill", "--api-url", site.url)
    assert result.exit_code == 2
    assert "cdn percentage" in result.output


def test_an_api_that_does_not_answer_changes_nothing(invoke: Invoke, connection: sa.Connection, site: Site) -> None:
    result = invoke("rollback-drill", "--api-url", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "is it running? `make dev` and `cdn-pipeline serve` start it" in " ".join(result.output.split())
    assert latest_actions(connection, 9) == []
