"""What is looked up for alerts alone, on a real catalog; and a watcher that watches one."""

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.alerts import watch
from cdn_pipeline.observe.alerts.facts import COST_FRESH_FOR, FactFinder
from cdn_pipeline.observe.alerts.machine import Severity
from cdn_pipeline.observe.alerts.rules import evaluate_rules
from cdn_pipeline.observe.alerts.watch import watching
from cdn_pipeline.observe.monitor import Monitor, monitoring
from cdn_pipeline.observe.storage import storage
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.observe.vitals import Vitals
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.observe.alerts.facts import NOW, hour, overview, vitals
from cdn_pipeline_tests.observe.alerts.receiver import Webhook
from cdn_pipeline_tests.queue.catalogs import NOW as THIS_MOMENT
from cdn_pipeline_tests.queue.catalogs import publish, reference, see, session


def test_the_new_images_of_the_last_hour_are_counted(catalog: sa.Engine) -> None:
    this_hour = hour(THIS_MOMENT.replace(minute=0, second=0))
    look = vitals(overview=overview(hours=(this_hour,)))
    finder = FactFinder(INSTAGRAM, None)
    with session(catalog) as connection:
        see(connection, reference())
        publish(connection)
        see(connection, reference(image="2"), reference(image="3"))
        facts = finder.find(connection, look)
        assert (facts.new_images, facts.growth, facts.cost) == (3, None, None)
        connection.execute(sa.text("UPDATE cdn_image_jobs SET created_at = created_at - interval '2 hours'"))
        assert FactFinder(INSTAGRAM, None).find(connection, look).new_images == 0
        assert finder.find(connection, look).new_images == 3  # an hour that is over is not counted again


def test_a_fact_that_cannot_be_looked_up_keeps_no_other_from_being_known(
    catalog: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    finder = FactFinder(INSTAGRAM, budget_usd=10.0)
    with catalog.begin() as connection:
        held = storage(connection)
        connection.execute(sa.text("ALTER TABLE cdn_processing_stats RENAME COLUMN storage_bytes TO what_is_stored"))
    with catalog.connect() as connection:
        for _ in range(2):
            facts = finder.find(connection, vitals(storage=held))
    assert facts.growth is None
    assert facts.cost is not None
    assert facts.unknown == set(facts.unmeasurable) == {"growth"}
    assert len([record for record in caplog.records if record.exc_info]) == 1
    evaluation = evaluate_rules(facts)
    assert "storage_growth" not in evaluation.rules
    [condition] = evaluation.conditions
    assert (condition.rule, condition.severity) == ("cannot_be_measured", Severity.WARNING)
    assert "storage_bytes" in condition.words


def test_a_fact_that_takes_too_long_is_not_known_just_now_and_nobodys_error(catalog: sa.Engine) -> None:
    finder = FactFinder(INSTAGRAM, None)
    with catalog.begin() as locking, catalog.connect() as connection:
        locking.execute(sa.text("LOCK TABLE cdn_processing_stats"))
        connection.execute(sa.text("SET statement_timeout = '100ms'"))
        connection.commit()
        facts = finder.find(connection, vitals())
    assert facts.unknown == {"growth"}
    assert facts.unmeasurable == {}
    assert "storage_growth" not in evaluate_rules(facts).rules


def test_a_months_cost_is_looked_up_once_an_hour(catalog: sa.Engine) -> None:
    finder = FactFinder(INSTAGRAM, budget_usd=10.0)
    with session(catalog) as connection:
        look = vitals(storage=storage(connection), traffic=Traffic(class_a_operations=10**6, class_b_operations=10**6))
        cost = finder.find(connection, look).cost
        assert cost is not None
        assert cost.total == pytest.approx(4.5 + 0.36)
        unconfigured = vitals(storage=storage(connection))
        assert finder.find(connection, unconfigured).cost == cost
        later = vitals(at=NOW + 2 * COST_FRESH_FOR, storage=storage(connection))
        cost = finder.find(connection, later).cost
        assert cost is not None
        assert (cost.total, cost.class_b) == (0.0, None)


def test_a_cost_is_not_judged_while_cloudflare_does_not_tell_and_is_as_soon_as_it_does(catalog: sa.Engine) -> None:
    finder = FactFinder(INSTAGRAM, budget_usd=10.0)
    with session(catalog) as connection:
        silent = vitals(storage=storage(connection), traffic=Traffic(problem="Cloudflare does not answer"))
        assert finder.find(connection, silent).cost is None
        told = vitals(storage=storage(connection), traffic=Traffic(class_a_operations=0, class_b_operations=10**9))
        cost = finder.find(connection, told).cost
        assert cost is not None
        assert cost.total == pytest.approx(360)
        assert finder.find(connection, silent).cost == cost


class Looks:
    """A monitor whose second look fails."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.count = 0
        self.third = threading.Event()

    def vitals(self) -> Vitals:
        self.count += 1
        if self.count == 2:
            raise RuntimeError("a look that fails")
        if self.count == 3:
            self.third.set()
        return self._monitor.vitals()


def test_a_watcher_goes_on_after_a_look_that_failed_and_ends_with_its_owner(
    settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCH_EVERY", timedelta(seconds=0.05))
    with monitoring(settings, catalog) as monitor:
        looks = Looks(monitor)
        with watching(settings, catalog, looks):
            assert looks.third.wait(60)
            assert "alerts" in {thread.name for thread in threading.enumerate()}
    assert "alerts" not in {thread.name for thread in threading.enumerate()}


def test_a_watcher_needs_none_of_the_connections_that_others_have_busy(
    settings: Settings, catalog: sa.Engine, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCH_EVERY", timedelta(seconds=0.05))
    busy = sa.create_engine(catalog.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with catalog.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO cdn_alerts (rule, severity, words, state, fired_at)"
                " VALUES ('images_lost', 'critical', 'images lost on our watch: 1', 'firing', now())"
            )
        )
    told_settings = settings.model_copy(update={"alert_urls": webhook.urls})
    with busy.connect(), monitoring(settings, catalog) as monitor, watching(told_settings, busy, monitor):
        assert webhook.came.wait(60)
    busy.dispose()
    assert webhook.titles[0] == "[critical] cdn_pipeline: Images were lost on our watch"
