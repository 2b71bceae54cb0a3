"""Parts of a deployment are stopped in turn: health says which, a webhook hears of it once, and once of its end."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from cdn_pipeline.observe import thresholds
from cdn_pipeline.settings import project_root
from cdn_pipeline_tests.api.deployment import Deployment, Part, deployed, opened
from cdn_pipeline_tests.engine.runs import make_due, run

NAMED_WITHIN = 10.0  # seconds
_TOLD_WITHIN = 60.0  # far more than it takes
_SOME_LOOKS = 1.5  # three of the watcher's, and three of the sensor's

# The check that health names a part by; what is told of it, and where the runbook goes on; its threshold.
CATALOG = "catalog", "The catalog is away", "catalog_unreachable"
STORE = "r2_storage", "A store is away", "store_unreachable"
DAEMON = "workers", "Nobody works", "no_workers", "HEARTBEAT_STALE"
ORIGIN = "processing_queue", "A host is left alone: 127.0.0.1", "breaker_open", "BREAKER_OPEN_WARNING"


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with deployed() as deployment:
        yield deployment


def wait_until(what: Callable[[], object], expected: object, seconds: float) -> None:
    """Asks until the answer is as expected."""
    started = time.monotonic()
    while (answer := what()) != expected:
        assert time.monotonic() - started < seconds, f"after {seconds} s still {answer}, not {expected}"
        time.sleep(0.1)


def ill(deployment: Deployment) -> set[str]:
    """The checks that are not well by themselves, and not for want of the catalog."""
    checks = deployment.health()["checks"]
    return {
        name
        for name, check in checks.items()
        if check["status"] != "healthy" and "not known while the catalog is away" not in check["words"]
    }


# -- ways to go away --


@contextmanager
def stopped(part: Part[Any]) -> Iterator[None]:
    part.stop()
    try:
        yield
    finally:
        part.start()


@contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """They take connections and answer nothing (SIGSTOP)."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a backend whose client has just gone
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def origin_stopped(deployment: Deployment) -> Iterator[None]:
    """New images are to be had from an origin that is away, so that a run opens its breaker."""
    deployment.add_rows()
    with stopped(deployment.origin):
        run(deployment.settings)
        yield
    with opened(deployment.settings.catalog_database_url) as catalog:
        make_due(catalog)
    assert run(deployment.settings).published > 0


@dataclass(frozen=True)
class Outage:
    """What goes away and how; the check that health names it by, and what is told of it.

    `counts_after` is the threshold that makes it an outage, where there is one.
    """

    name: str
    happens: Callable[[Deployment], AbstractContextManager[None]]
    check: str
    title: str
    section: str
    counts_after: str | None = None


OUTAGES = (
    Outage("postgres stopped", lambda world: stopped(world.postgres), *CATALOG),
    Outage("postgres hangs", lambda world: frozen(world.postgres_processes()), *CATALOG),
    Outage("store stopped", lambda world: stopped(world.s3), *STORE),
    Outage("store hangs", lambda world: frozen([psutil.Process(world.s3.entered.pid)]), *STORE),
    Outage("daemon stopped", lambda world: stopped(world.sensor), *DAEMON),
    Outage("origin stopped", origin_stopped, *ORIGIN),
)


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.name)
def test_an_outage_is_named_within_ten_seconds_and_told_once_and_so_is_its_end(
    deployment: Deployment, outage: Outage
) -> None:
    webhook, told = deployment.webhook, deployment.told
    wait_until(lambda: ill(deployment), set(), NAMED_WITHIN)
    assert deployment.media().status_code == 200

    with outage.happens(deployment):
        unnoticed = getattr(thresholds, outage.counts_after).total_seconds() if outage.counts_after else 0.0
        wait_until(lambda: ill(deployment), {outage.check}, unnoticed + NAMED_WITHIN)
        assert deployment.client.get("/livez").status_code == 200
        media = deployment.media()
        if outage.check == "catalog":
            assert (media.status_code, media.headers["content-type"]) == (503, "application/problem+json")
        else:
            assert media.json()["avatar"]["available"]
        told.append(f"[critical] cdn_pipeline: {outage.title}")
        wait_until(lambda: webhook.titles, told, _TOLD_WITHIN)
        assert f"docs/runbook.md#{outage.section}" in webhook.arrived[-1][1]
        time.sleep(_SOME_LOOKS)
        assert webhook.titles == told

    wait_until(lambda: ill(deployment), set(), NAMED_WITHIN)
    assert deployment.media().status_code == 200
    told.append(f"[resolved] cdn_pipeline: {outage.title}")
    wait_until(lambda: webhook.titles, told, _TOLD_WITHIN)
    time.sleep(_SOME_LOOKS)
    assert webhook.titles == told


@pytest.mark.parametrize("section", sorted({outage.section for outage in OUTAGES}))
def test_the_section_that_a_message_names_is_in_the_runbook(section: str) -> None:
    assert f"### {section}" in (project_root() / "docs" / "runbook.md").read_text().splitlines()
