"""The origin's weather; what the world does to its rows is seen at work in the simulated fortnight."""

from datetime import UTC, datetime, timedelta

import time_machine
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation.happenings import BadHours, Weather
from cdn_pipeline.demo.faults import Fault

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
EXPIRES = START + 100 * HOUR


def faults_at(moment: datetime, *bad: BadHours) -> list[Fault | None]:
    """What becomes of 200 pictures' second attempts; the first shows a picture its own fault."""
    weather = Weather(bad, seed=1)
    with time_machine.travel(moment, tick=False):
        return [weather.next_fault(f"/{number}", EXPIRES) for number in range(200) for _ in range(2)][1::2]


def test_in_an_outage_every_answer_is_an_error_until_it_ends() -> None:
    outage = BadHours(START, START + HOUR, 1.0)
    assert set(faults_at(START, outage)) == {Fault.SERVER_ERROR}
    assert faults_at(START + HOUR, outage).count(Fault.SERVER_ERROR) == 0


@given(share=st.floats(0.3, 0.9))
def test_in_bad_hours_about_this_share_is_answered_wrongly_in_several_ways(share: float) -> None:
    faults = faults_at(START, BadHours(START, START + HOUR, share), BadHours(START, START + HOUR, 0.1))
    wrong = [fault for fault in faults if fault is not None and fault is not Fault.GONE]
    assert abs(len(wrong) / len(faults) - share) < 0.15
    assert {Fault.SERVER_ERROR, Fault.TRUNCATED, Fault.RATE_LIMITED} <= set(wrong)
