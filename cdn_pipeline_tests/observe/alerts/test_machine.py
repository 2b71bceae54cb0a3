"""The states of an alert over any history: one active alert, no message twice, an end for whatever was told."""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.observe.alerts.machine import (
    RETRY_LATEST,
    Alert,
    Condition,
    Kind,
    Severity,
    State,
    Timing,
    advance,
    advance_seen,
    message_due,
    still_to_tell,
    told,
)

START = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TIMING = Timing(hold_for=5 * MINUTE, clear_for=10 * MINUTE)
WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL


def condition(severity: Severity = WARNING, words: str = "wrong") -> Condition:
    return Condition("rule", "subject", severity, words)


def after(alert: Alert | None, minutes: float, holds: Condition | None, timing: Timing = TIMING) -> Alert | None:
    """The alert after a look so many minutes from the start."""
    return advance(alert, holds, timing, START + minutes * MINUTE)


def firing() -> Alert:
    alert = after(after(None, 0, condition()), 5, condition())
    assert alert is not None
    assert alert.state is State.FIRING
    return alert


def test_a_condition_fires_once_it_has_held_for_long_enough() -> None:
    alert = after(None, 0, condition())
    assert alert is not None
    assert alert.state is State.PENDING
    alert = after(alert, 4.9, condition())
    assert alert is not None
    assert alert.state is State.PENDING
    alert = after(alert, 5, condition(words="still wrong"))
    assert alert is not None
    assert (alert.state, alert.since, alert.fired_at, alert.words) == (
        State.FIRING,
        START,
        START + 5 * MINUTE,
        "still wrong",
    )


def test_what_need_not_hold_fires_at_once() -> None:
    alert = after(None, 0, condition(), Timing(timedelta(0), MINUTE))
    assert alert is not None
    assert alert.state is State.FIRING


def test_a_pending_alert_whose_condition_ends_is_forgotten() -> None:
    assert after(after(None, 0, condition()), 4, None) is None


def test_an_alert_resolves_once_its_condition_has_been_over_for_long_enough() -> None:
    alert = after(firing(), 6, None)
    assert alert is not None
    assert (alert.state, alert.clear_since) == (State.FIRING, START + 6 * MINUTE)
    alert = after(alert, 16, None)
    assert alert is not None
    assert (alert.state, alert.resolved_at) == (State.RESOLVED, START + 16 * MINUTE)


def test_a_condition_that_comes_back_meanwhile_keeps_its_alert() -> None:
    alert = after(after(firing(), 6, None), 15, condition())
    assert alert is not None
    assert alert.clear_since is None
    alert = after(alert, 17, None)
    assert alert is not None
    assert alert.state is State.FIRING


def test_a_severity_that_rises_is_told_and_one_that_falls_and_rises_again_is_not() -> None:
    alert = firing()
    message = message_due(alert, TIMING, WARNING, START)
    assert message is not None
    alert = told(alert, message, {}, START)
    assert message_due(alert, TIMING, WARNING, START) is None
    for severity, is_told in ((CRITICAL, True), (WARNING, False), (CRITICAL, False)):
        risen = after(alert, 6, condition(severity))
        assert risen is not None
        message = message_due(risen, TIMING, WARNING, START)
        assert (message is not None) is is_told
        alert = told(risen, message, {}, START) if message else risen


@pytest.mark.parametrize(("level", "is_told"), [(Severity.INFO, True), (WARNING, True), (CRITICAL, False)])
def test_only_alerts_of_the_wanted_level_are_told(level: Severity, is_told: bool) -> None:
    assert (message_due(firing(), TIMING, level, START) is not None) is is_told


def test_the_end_of_an_event_is_not_told() -> None:
    event = replace(TIMING, tells_end=False)
    over = after(after(firing(), 6, None), 16, None)
    assert over is not None
    assert message_due(over, event, WARNING, START) is None
    assert message_due(over, TIMING, WARNING, START) is not None


def test_only_the_receivers_that_did_not_take_a_message_get_it_again_and_later() -> None:
    alert = firing()
    message = message_due(alert, TIMING, WARNING, START + 5 * MINUTE)
    assert message is not None
    assert still_to_tell(alert, {"a", "b"}) == {"a", "b"}
    alert = told(alert, message, {"b": "b: away"}, START + 5 * MINUTE)
    assert (still_to_tell(alert, {"a", "b", "c"}), alert.telling_failed) == ({"b"}, "b: away")
    assert message_due(alert, TIMING, WARNING, START + 5 * MINUTE) is None
    message = message_due(alert, TIMING, WARNING, START + 5 * MINUTE + RETRY_LATEST)
    assert message is not None
    alert = told(alert, message, {}, START + 11 * MINUTE)
    assert message_due(alert, TIMING, WARNING, START + 60 * MINUTE) is None
    assert alert.telling_failed is None


def test_what_was_told_of_an_alert_that_has_moved_on_does_not_hide_what_is_new() -> None:
    alert = firing()
    message = message_due(alert, TIMING, WARNING, START)
    assert message is not None
    risen = after(alert, 6, condition(CRITICAL))
    assert risen is not None
    for failures in ({}, {"a": "away"}):
        late = told(risen, message, failures, START + 6 * MINUTE)
        assert message_due(late, TIMING, WARNING, START + 6 * MINUTE) is not None


def test_who_took_a_message_that_others_did_not_was_told() -> None:
    alert = firing()
    message = message_due(alert, TIMING, WARNING, START + 5 * MINUTE)
    assert message is not None
    nobody = told(alert, message, {"a": "away", "b": "away"}, START + 5 * MINUTE)
    one = told(alert, message, {"a": None, "b": "away"}, START + 5 * MINUTE)
    assert (nobody.told_firing_at, one.told_firing_at) == (None, START + 5 * MINUTE)
    assert still_to_tell(one, {"a", "b"}) == {"b"}


# -- places --


def seen(alert: Alert | None, minutes: float, place: str, holds: Condition | None) -> Alert | None:
    """The alert after a look from there."""
    return advance_seen(alert, holds, place, TIMING, START + minutes * MINUTE)


def test_who_does_not_see_it_ends_nothing_that_another_sees() -> None:
    alert = None
    for minute in range(7):
        alert = seen(alert, minute, "daemon@b", condition())
        alert = seen(alert, minute + 0.5, "api@a", None)
    assert alert is not None
    assert (alert.state, alert.clear_since) == (State.FIRING, None)
    assert alert.words == "wrong (seen from daemon@b)"


def test_a_second_place_joins_the_alert_and_it_is_over_when_nobody_sees_it() -> None:
    alert = seen(seen(None, 0, "a", condition()), 1, "b", condition())
    assert alert is not None
    assert alert.since == START
    assert alert.words == "wrong (seen from a, b)"
    alert = seen(seen(alert, 1.5, "a", condition()), 2, "b", None)
    assert alert is not None
    assert set(alert.seen_from) == {"a"}
    assert seen(alert, 2.5, "a", None) is None  # it was pending


def test_the_view_of_who_has_gone_counts_no_more() -> None:
    alert = seen(None, 0, "a pod that ends", condition())
    still = seen(alert, 1.9, "b", None)
    assert still is not None
    assert seen(still, 2, "b", None) is None


@given(looks=st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=40))
def test_from_one_place_it_is_as_if_there_were_no_places(looks: list[tuple[int, bool]]) -> None:
    alone: Alert | None = None
    plain: Alert | None = None
    now = START
    for seconds, holds in looks:
        now += timedelta(seconds=seconds)
        alone = advance_seen(alone, condition() if holds else None, "a", TIMING, now)
        plain = advance(plain, condition() if holds else None, TIMING, now)
        assert (alone and (alone.state, alone.since)) == (plain and (plain.state, plain.since))
        if plain and plain.state is State.RESOLVED:
            alone = plain = None


# -- any history --


@dataclass
class World:
    """Looks at one rule and subject, tells one receiver, and keeps what it was told."""

    timing: Timing
    level: Severity
    now: datetime = START
    active: Alert | None = None
    resolved: list[Alert] = field(default_factory=list)
    told: list[tuple[UUID, Kind, Severity]] = field(default_factory=list)

    def look(self, severity: Severity | None, *, receiver_is_up: bool) -> None:
        alert = advance(self.active, condition(severity) if severity else None, self.timing, self.now)
        alert = replace(alert, id=alert.id or uuid4()) if alert else None
        if alert and alert.state is State.RESOLVED:
            self.resolved.append(alert)
            alert = None
        self.active = self.tell(alert, receiver_is_up) if alert else None
        self.resolved = [self.tell(each, receiver_is_up) for each in self.resolved]

    def tell(self, alert: Alert, receiver_is_up: bool) -> Alert:
        message = message_due(alert, self.timing, self.level, self.now)
        if message is None:
            return alert
        if receiver_is_up:
            assert alert.id is not None
            self.told.append((alert.id, message.kind, alert.severity))
        return told(alert, message, {} if receiver_is_up else {"receiver": "away"}, self.now)


steps = st.lists(
    st.tuples(st.integers(0, 900), st.sampled_from([None, None, *Severity]), st.booleans()), min_size=1, max_size=60
)
timings = st.builds(
    Timing,
    st.integers(0, 600).map(lambda seconds: timedelta(seconds=seconds)),
    st.integers(0, 600).map(lambda seconds: timedelta(seconds=seconds)),
)


@given(timing=timings, level=st.sampled_from(Severity), steps=steps)
def test_whatever_happens_nothing_is_told_twice_and_whatever_was_told_ends_once(
    timing: Timing, level: Severity, steps: list[tuple[int, Severity | None, bool]]
) -> None:
    world = World(timing, level)
    for seconds, severity, receiver_is_up in steps:
        world.now += timedelta(seconds=seconds)
        world.look(severity, receiver_is_up=receiver_is_up)
    for _ in range(3):  # it is over, and the receiver is there
        world.now += max(timing.clear_for, RETRY_LATEST)
        world.look(None, receiver_is_up=True)

    assert world.active is None
    assert max(Counter(world.told).values(), default=1) == 1
    for alert in world.resolved:
        messages = [(kind, severity) for told_id, kind, severity in world.told if told_id == alert.id]
        firing = [severity.rank for kind, severity in messages if kind is Kind.FIRING]
        assert firing == sorted(set(firing))
        assert [kind for kind, _ in messages if kind is Kind.RESOLVED] == (
            [Kind.RESOLVED] if alert.severity.rank >= level.rank else []
        )
        if messages:
            assert messages[-1][0] is Kind.RESOLVED


@given(timing=timings, steps=steps)
def test_with_a_receiver_that_is_there_every_alert_is_told_when_it_fires(
    timing: Timing, steps: list[tuple[int, Severity | None, bool]]
) -> None:
    world = World(timing, Severity.INFO)
    for seconds, severity, _ in steps:
        world.now += timedelta(seconds=seconds)
        world.look(severity, receiver_is_up=True)
        if world.active and world.active.state is State.FIRING:
            assert world.active.id is not None
            assert (world.active.id, Kind.FIRING, world.active.severity) in world.told
