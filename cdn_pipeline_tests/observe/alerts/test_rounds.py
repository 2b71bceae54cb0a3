"""Rounds on a real catalog with a real receiver: who is told what, and how often."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from psycopg import sql

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.demo import fast_clock
from cdn_pipeline.observe.alerts.book import CLAIM, RESOLVED_KEPT, active_alerts, claim_messages, resolved_alerts
from cdn_pipeline.observe.alerts.machine import Alert, Severity, State
from cdn_pipeline.observe.alerts.messages import DIGEST_ABOVE, Letter
from cdn_pipeline.observe.alerts.receivers import Receiver, Telling
from cdn_pipeline.observe.alerts.rounds import Evaluator
from cdn_pipeline.observe.alerts.rules import TIMINGS, Evaluation, as_conditions
from cdn_pipeline.observe.alerts.signals import Signal
from cdn_pipeline.observe.alerts.watch import Watcher
from cdn_pipeline.observe.monitor import monitoring
from cdn_pipeline.observe.vitals import Vitals
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.observe.alerts.facts import AWAY, hour, overview, queue_of, vitals, without_catalog
from cdn_pipeline_tests.observe.alerts.receiver import Webhook, running_webhook
from cdn_pipeline_tests.postgres import connect

LONG = timedelta(hours=2)  # longer than anything has to hold, to be over, or to wait for its next telling


class Clock:
    """The catalog's, moved by hand."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._offset = timedelta(0)

    def advance(self, by: timedelta) -> None:
        self._offset += by
        fast_clock.set_offset(self._engine, self._offset)

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + self._offset


@pytest.fixture
def clocked(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    fast_clock.install(engine)
    migrate(engine, "https://cdn.example")
    yield engine
    engine.dispose()


@pytest.fixture
def clock(clocked: sa.Engine) -> Clock:
    return Clock(clocked)


@pytest.fixture
def told_settings(settings: Settings, webhook: Webhook) -> Settings:
    return settings.model_copy(update={"alert_urls": webhook.urls})


@pytest.fixture
def evaluator(told_settings: Settings, clocked: sa.Engine) -> Evaluator:
    return Evaluator(told_settings, clocked)


def deep(clock: Clock, depth: int = 1500) -> Vitals:
    return vitals(at=clock.now, overview=overview(queue=queue_of(depth)))


def well(clock: Clock) -> Vitals:
    return vitals(at=clock.now)


def failed_jobs(count: int) -> Evaluation:
    found = [Signal(Severity.CRITICAL, f"job {n} failed", f"job-{n}") for n in range(count)]
    return Evaluation(frozenset({"run_failed"}), tuple(as_conditions("run_failed", found)))


def alerts(engine: sa.Engine) -> tuple[list[Alert], list[Alert]]:
    """Those that are active, and those that were."""
    with engine.connect() as connection:
        return list(active_alerts(connection)), list(resolved_alerts(connection, 100))


def let_it_hold(evaluator: Evaluator, clock: Clock, depth: int = 1500) -> None:
    """A deep queue, seen twice."""
    evaluator.evaluate(deep(clock, depth))
    clock.advance(timedelta(minutes=6))
    evaluator.evaluate(deep(clock, depth))


def let_it_end(evaluator: Evaluator, clock: Clock) -> None:
    evaluator.evaluate(well(clock))
    clock.advance(LONG)
    evaluator.evaluate(well(clock))


def test_an_alert_is_told_once_and_so_is_its_end(evaluator: Evaluator, clock: Clock, webhook: Webhook) -> None:
    evaluator.evaluate(deep(clock))
    assert webhook.arrived == []
    for _ in range(3):
        clock.advance(timedelta(minutes=6))
        evaluator.evaluate(deep(clock))
    [(title, body)] = webhook.arrived
    assert title == "[warning] cdn_pipeline: The queue is deep"
    assert "1500 urgent jobs are in the queue, more than 1000." in body
    assert "docs/runbook.md#queue_depth" in body
    assert "First: " in body
    for _ in range(3):
        let_it_end(evaluator, clock)
    assert webhook.titles[1:] == ["[resolved] cdn_pipeline: The queue is deep"]
    assert "It lasted 18 min" in webhook.arrived[1][1]


def test_a_graver_condition_is_told_again(evaluator: Evaluator, clock: Clock, webhook: Webhook) -> None:
    let_it_hold(evaluator, clock)
    evaluator.evaluate(deep(clock, 3000))
    evaluator.evaluate(deep(clock, 1500))
    evaluator.evaluate(deep(clock, 3000))
    assert webhook.titles == [f"[{level}] cdn_pipeline: The queue is deep" for level in ("warning", "critical")]


def test_what_could_not_be_measured_is_not_over(evaluator: Evaluator, clock: Clock, clocked: sa.Engine) -> None:
    let_it_hold(evaluator, clock)
    for _ in range(2):
        clock.advance(LONG)
        evaluator.evaluate(vitals(at=clock.now, overview=None))
    [[alert], resolved] = alerts(clocked)
    assert (alert.rule, alert.state, resolved) == ("queue_depth", State.FIRING, [])


def test_evaluators_at_once_tell_once(
    told_settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    evaluators = [Evaluator(told_settings, clocked) for _ in range(4)]

    def at_once(look: Vitals) -> None:
        start = threading.Barrier(len(evaluators))

        def evaluate(evaluator: Evaluator) -> None:
            start.wait()
            evaluator.evaluate(look)

        threads = [threading.Thread(target=evaluate, args=(each,)) for each in evaluators]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for moment in (deep, deep, well, well):
        at_once(moment(clock))
        clock.advance(timedelta(minutes=15))
    assert webhook.titles == [f"[{label}] cdn_pipeline: The queue is deep" for label in ("warning", "resolved")]
    active, resolved = alerts(clocked)
    assert (len(active), len(resolved)) == (0, 1)


def test_a_receiver_that_is_away_is_told_once_it_is_back(
    evaluator: Evaluator, clock: Clock, webhook: Webhook, clocked: sa.Engine
) -> None:
    webhook.is_down = True
    let_it_hold(evaluator, clock)
    evaluator.evaluate(deep(clock))
    assert webhook.refused == 1  # the next attempt comes later
    [[alert], _] = alerts(clocked)
    assert alert.telling_failed is not None
    clock.advance(timedelta(minutes=10))
    evaluator.evaluate(deep(clock))
    assert webhook.refused == 2
    webhook.is_down = False
    clock.advance(timedelta(minutes=10))
    evaluator.evaluate(deep(clock))
    assert webhook.titles == ["[warning] cdn_pipeline: The queue is deep"]
    let_it_end(evaluator, clock)
    assert webhook.titles[1:] == ["[resolved] cdn_pipeline: The queue is deep"]


def test_what_came_and_went_while_the_receiver_was_away_is_told_by_one_message(
    evaluator: Evaluator, clock: Clock, webhook: Webhook
) -> None:
    webhook.is_down = True
    let_it_hold(evaluator, clock)
    let_it_end(evaluator, clock)
    webhook.is_down = False
    clock.advance(LONG)
    evaluator.evaluate(well(clock))
    [(title, body)] = webhook.arrived
    assert title == "[resolved] cdn_pipeline: The queue is deep"
    assert "Nobody could be told while it lasted." in body


def test_of_two_receivers_only_the_one_that_was_away_is_told_again(
    settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    with running_webhook() as other:
        other.is_down = True
        urls = f"{webhook.url} {other.url}"
        evaluator = Evaluator(settings.model_copy(update={"alert_urls": type(webhook.urls)(urls)}), clocked)
        let_it_hold(evaluator, clock)
        other.is_down = False
        clock.advance(LONG)
        evaluator.evaluate(deep(clock))
        assert webhook.titles == other.titles == ["[warning] cdn_pipeline: The queue is deep"]


def test_who_is_killed_before_telling_is_replaced(
    evaluator: Evaluator, settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    let_it_hold(Evaluator(settings, clocked), clock)  # who knows no receiver
    with clocked.begin() as connection:
        assert len(claim_messages(connection, TIMINGS, Severity.WARNING)) == 1  # and is killed now
    assert evaluator.tell_due() == 0
    clock.advance(CLAIM)
    assert evaluator.tell_due() == 1
    assert webhook.titles == ["[warning] cdn_pipeline: The queue is deep"]


def test_who_takes_long_to_tell_is_not_replaced_meanwhile(
    told_settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three messages takes most of the claim's time, and another evaluator looks after each."""
    slow, other = Evaluator(told_settings, clocked), Evaluator(told_settings, clocked)
    take = Receiver.tell

    def tell(receiver: Receiver, letter: Letter) -> str | None:
        answer = take(receiver, letter)
        if threading.current_thread() is threading.main_thread():
            clock.advance(0.8 * CLAIM)
            with ThreadPoolExecutor(1) as thread:
                thread.submit(other.tell_due).result()
        return answer

    monkeypatch.setattr(Receiver, "tell", tell)
    slow.evaluate(well(clock), failed_jobs(3))
    assert sorted(webhook.titles) == [
        f"[critical] cdn_pipeline: A job's last run failed: job-{number}" for number in range(3)
    ]


def test_what_there_is_no_time_to_tell_is_told_in_the_next_round(
    evaluator: Evaluator, clock: Clock, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Receiver.tell
    time_is_up = threading.Event()

    def tell(receiver: Receiver, letter: Letter) -> str | None:
        time_is_up.set()
        return take(receiver, letter)

    monkeypatch.setattr(Receiver, "tell", tell)
    monkeypatch.setattr(Telling, "is_over", property(lambda _: time_is_up.is_set()))
    evaluator.evaluate(well(clock), failed_jobs(3))
    for told in (1, 2, 3, 3):
        assert len(webhook.arrived) == told
        time_is_up.clear()
        evaluator.tell_due()
    assert len(set(webhook.titles)) == 3


def test_a_receiver_that_is_away_costs_its_time_once_a_round(
    evaluator: Evaluator, clock: Clock, webhook: Webhook
) -> None:
    webhook.is_down = True
    evaluator.evaluate(well(clock), failed_jobs(3))
    assert webhook.refused == 1


def test_what_one_of_two_receivers_was_told_nobody_says_that_nobody_was(
    settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    with running_webhook() as other:
        other.is_down = True
        urls = type(webhook.urls)(f"{webhook.url} {other.url}")
        evaluator = Evaluator(settings.model_copy(update={"alert_urls": urls}), clocked)
        let_it_hold(evaluator, clock)
        let_it_end(evaluator, clock)
    assert webhook.titles[-1] == "[resolved] cdn_pipeline: The queue is deep"
    assert "Nobody" not in webhook.arrived[-1][1]


# -- several evaluators --


@pytest.mark.parametrize("also_seen_by_the_api", [True, False])
def test_an_outage_that_the_daemons_machine_sees_is_told_once_and_so_is_its_end(
    told_settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook, also_seen_by_the_api: bool
) -> None:
    watcher = Evaluator(told_settings, clocked, program="api")
    sensor = Evaluator(told_settings, clocked, program="daemon")
    for is_away in (True, False):
        for look in range(24):  # four minutes
            watcher.evaluate(vitals(at=clock.now, **({"objects": AWAY} if is_away and also_seen_by_the_api else {})))
            if look % 3 == 0:
                sensor.evaluate(vitals(at=clock.now, **({"objects": AWAY} if is_away else {})))
            clock.advance(timedelta(seconds=10))
    assert webhook.titles == [f"[{label}] cdn_pipeline: A store is away" for label in ("critical", "resolved")]
    assert "daemon@" in webhook.arrived[0][1]


def test_an_hours_work_is_told_once_by_evaluators_whose_views_differ(
    told_settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    settings = told_settings.model_copy(update={"alert_level": "info"})
    watcher, sensor = Evaluator(settings, clocked), Evaluator(settings, clocked)
    this_hour = clock.now.replace(minute=0, second=0, microsecond=0)
    before, latest = (
        vitals(at=clock.now, overview=overview(hours=(hour(this_hour - hours * timedelta(hours=1)),)))
        for hours in (2, 1)
    )
    for _ in range(2):
        watcher.evaluate(before)
        for _ in range(2):
            watcher.evaluate(latest)
            sensor.evaluate(before)  # its overview is some seconds older
            clock.advance(timedelta(minutes=6))
    assert len(webhook.titles) == len({body for _, body in webhook.arrived}) == 2


def test_a_burst_is_one_message(evaluator: Evaluator, clock: Clock, webhook: Webhook) -> None:
    evaluator.evaluate(well(clock), failed_jobs(DIGEST_ABOVE))
    assert len(webhook.arrived) == DIGEST_ABOVE
    evaluator.evaluate(well(clock), failed_jobs(3 * DIGEST_ABOVE))
    [(title, body)] = webhook.arrived[DIGEST_ABOVE:]
    assert title == "[critical] cdn_pipeline: 10 alerts, 0 resolved"
    assert all(f"job-{n}," in body for n in range(DIGEST_ABOVE, 3 * DIGEST_ABOVE))
    evaluator.evaluate(well(clock), failed_jobs(3 * DIGEST_ABOVE))
    assert len(webhook.arrived) == DIGEST_ABOVE + 1


def test_below_the_level_nobody_is_told(
    told_settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    quiet = told_settings.model_copy(update={"alert_level": "critical"})
    let_it_hold(Evaluator(quiet, clocked), clock)
    let_it_end(Evaluator(quiet, clocked), clock)
    assert webhook.arrived == []
    assert [alert.rule for alert in alerts(clocked)[1]] == ["queue_depth"]


def test_what_is_long_over_is_forgotten(evaluator: Evaluator, clock: Clock, clocked: sa.Engine) -> None:
    let_it_hold(evaluator, clock)
    let_it_end(evaluator, clock)
    clock.advance(RESOLVED_KEPT)
    let_it_hold(evaluator, clock)
    let_it_end(evaluator, clock)
    active, resolved = alerts(clocked)
    assert (len(active), len(resolved)) == (0, 1)


# -- the watcher --


def test_a_catalog_that_goes_away_and_comes_back_is_told_once_each(
    told_settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    watcher = Watcher(told_settings, clocked)
    watcher.look(well(clock))
    at = clock.now
    for seconds in range(0, 120, 10):
        watcher.look(without_catalog(at=at + timedelta(seconds=seconds), objects=AWAY))
    assert webhook.titles == ["[critical] cdn_pipeline: The catalog is away"]
    for seconds in range(120, 240, 10):
        watcher.look(vitals(at=at + timedelta(seconds=seconds)))
    assert webhook.titles[1:] == ["[resolved] cdn_pipeline: The catalog is away"]
    [active, [alert]] = alerts(clocked)
    assert (active, alert.rule, alert.state) == ([], "catalog_unreachable", State.RESOLVED)
    assert alert.told_firing_at is not None
    assert alert.told_resolved_at is not None


@contextmanager
def refused(server: EmbeddedPostgres, database: str) -> Iterator[None]:
    """Postgres takes no connection to the database, and has ended those that were open."""
    with connect(server.url("postgres")) as connection:
        allow = "ALTER DATABASE {} ALLOW_CONNECTIONS {}"
        connection.execute(sql.SQL(allow).format(sql.Identifier(database), sql.Literal(False)))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])
        yield
        connection.execute(sql.SQL(allow).format(sql.Identifier(database), sql.Literal(True)))


def test_what_is_measured_of_a_real_catalog_makes_one_alert_and_one_end(
    told_settings: Settings, catalog: sa.Engine, postgres_server: EmbeddedPostgres, webhook: Webhook, tmp_path: Path
) -> None:
    for folder in ("objects", "originals"):
        (tmp_path / folder).mkdir()
    watcher, at = Watcher(told_settings, catalog), datetime.now(UTC)

    def look(minutes: float) -> None:
        with monitoring(told_settings, catalog) as monitor:
            watcher.look(replace(monitor.vitals(), at=at + timedelta(minutes=minutes)))

    look(0)
    database = catalog.url.database
    assert database is not None
    with refused(postgres_server, database):
        for minutes in (1, 2, 3):
            look(minutes)
    [(title, body)] = webhook.arrived
    assert title == "[critical] cdn_pipeline: The catalog is away"
    assert "not currently accepting connections" in body
    catalog.dispose()
    for minutes in (4, 5, 6):
        look(minutes)
    assert webhook.titles[1:] == ["[resolved] cdn_pipeline: The catalog is away"]


def test_a_catalog_that_cannot_be_reached_ends_no_watcher(
    told_settings: Settings, clock: Clock, webhook: Webhook
) -> None:
    nowhere = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    watcher = Watcher(told_settings, nowhere)
    for seconds in range(0, 60, 10):
        watcher.look(without_catalog(at=clock.now + timedelta(seconds=seconds)))
    assert webhook.titles == ["[critical] cdn_pipeline: The catalog is away"]


def test_a_hiccup_of_the_catalog_is_told_to_nobody(
    told_settings: Settings, clocked: sa.Engine, clock: Clock, webhook: Webhook
) -> None:
    watcher = Watcher(told_settings, clocked)
    watcher.look(without_catalog(at=clock.now))
    watcher.look(replace(well(clock), at=clock.now + timedelta(minutes=1)))
    watcher.look(without_catalog(at=clock.now + timedelta(minutes=2)))
    assert webhook.arrived == []
