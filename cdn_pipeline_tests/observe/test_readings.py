"""A measurement is made once at a time, remembered, and made anew before it is old."""

import threading

import pytest

from cdn_pipeline.observe.readings import Reading

FOR_EVER = 3600.0


class Measurement:
    """Counts how often it is made; waits while it is told to."""

    def __init__(self) -> None:
        self.made = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self) -> int:
        self.made += 1
        made = self.made
        assert self.go_on.wait(60)
        return made


def test_what_is_fresh_is_not_measured_again() -> None:
    measurement = Measurement()
    reading = Reading(measurement, fresh_for=FOR_EVER)
    assert [reading.ask().result(60) for _ in range(3)] == [1, 1, 1]


def test_what_is_old_is_measured_anew() -> None:
    measurement = Measurement()
    reading = Reading(measurement, fresh_for=-1)
    assert [reading.ask().result(60) for _ in range(3)] == [1, 2, 3]


def test_however_many_ask_it_is_measured_once_at_a_time() -> None:
    measurement = Measurement()
    measurement.go_on.clear()
    reading = Reading(measurement, fresh_for=FOR_EVER)
    asked = [reading.ask() for _ in range(100)]
    measurement.go_on.set()
    assert {each.result(60) for each in asked} == {1}


def test_while_it_is_half_old_it_is_told_at_once_and_measured_behind_the_askers_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("cdn_pipeline.observe.readings.time.monotonic", lambda: now)
    measurement = Measurement()
    reading = Reading(measurement, fresh_for=10)
    assert reading.ask().result(60) == 1
    measurement.go_on.clear()
    now = 7.0
    assert reading.ask().result(0) == 1
    now = 11.0
    later = reading.ask()
    assert not later.done()
    measurement.go_on.set()
    assert later.result(60) == 2


def test_a_measurement_that_fails_raises_for_whoever_asked_and_is_tried_again() -> None:
    failures = [ConnectionError("away")]

    def measure() -> str:
        if failures:
            raise failures.pop()
        return "there"

    reading = Reading(measure, fresh_for=-1)
    with pytest.raises(ConnectionError, match="away"):
        reading.ask().result(60)
    assert reading.ask().result(60) == "there"


def test_on_a_machine_without_a_thread_to_spare_a_measurement_fails_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reading = Reading(Measurement(), fresh_for=-1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            reading.ask().result(60)
    assert reading.ask().result(60) == 1
