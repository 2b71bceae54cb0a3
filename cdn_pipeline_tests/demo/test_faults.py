from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from cdn_pipeline.demo.faults import DEFAULT_RATES, NO_FAULTS, Fault, Misbehaviour

EXPIRY = datetime(2026, 11, 25, tzinfo=UTC)
LATER = EXPIRY + timedelta(days=4)
PATHS = [f"/v/t51.2885-15/{number}_1_1_n.jpg" for number in range(20_000)]
TRANSIENT = [Fault.RATE_LIMITED, Fault.SLOW, Fault.TRUNCATED, Fault.HTML_PAGE, Fault.SERVER_ERROR]


def _only(fault: Fault) -> Misbehaviour:
    return Misbehaviour({fault: 1.0})


def test_the_rates_are_shares_of_the_pictures() -> None:
    misbehaviour = Misbehaviour()
    drawn = Counter(misbehaviour.drawn(path) for path in PATHS)
    for fault, rate in DEFAULT_RATES.items():
        assert drawn[fault] / len(PATHS) == pytest.approx(rate, abs=0.003)


def test_the_same_seed_draws_the_same_faults_and_another_seed_others() -> None:
    assert [Misbehaviour(seed=1).drawn(path) for path in PATHS] == [Misbehaviour(seed=1).drawn(path) for path in PATHS]
    assert [Misbehaviour(seed=1).drawn(path) for path in PATHS] != [Misbehaviour(seed=2).drawn(path) for path in PATHS]


def test_at_the_default_rates_at_least_98_of_100_pictures_are_had_by_the_second_attempt() -> None:
    misbehaviour = Misbehaviour()
    had = sum(None in (misbehaviour.next_fault(path, EXPIRY), misbehaviour.next_fault(path, EXPIRY)) for path in PATHS)
    assert had / len(PATHS) > 0.98


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_heals_at_the_second_attempt(fault: Fault) -> None:
    misbehaviour = _only(fault)
    assert [misbehaviour.next_fault("/a", EXPIRY) for _ in range(3)] == [fault, None, None]


def test_a_stale_url_heals_only_with_a_url_that_expires_later() -> None:
    misbehaviour = _only(Fault.STALE_URL)
    answers = [misbehaviour.next_fault("/a", expiry) for expiry in (EXPIRY, EXPIRY, LATER, EXPIRY)]
    assert answers == [Fault.STALE_URL, Fault.STALE_URL, None, Fault.STALE_URL]


def test_a_picture_that_is_gone_stays_gone() -> None:
    misbehaviour = _only(Fault.GONE)
    assert [misbehaviour.next_fault("/a", expiry) for expiry in (EXPIRY, LATER)] == [Fault.GONE, Fault.GONE]


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_can_be_ordered_for_a_number_of_attempts_of_one_picture(fault: Fault) -> None:
    misbehaviour = Misbehaviour(NO_FAULTS)
    assert misbehaviour.next_fault("/a", EXPIRY) is None
    misbehaviour.order("/a", fault, attempts=2)
    assert [misbehaviour.next_fault("/a", EXPIRY) for _ in range(3)] == [fault, fault, None]
    assert misbehaviour.next_fault("/b", EXPIRY) is None


def test_ordered_stale_and_gone_pictures_behave_as_drawn_ones() -> None:
    misbehaviour = Misbehaviour(NO_FAULTS)
    misbehaviour.order("/stale", Fault.STALE_URL)
    misbehaviour.order("/gone", Fault.GONE)
    assert [misbehaviour.next_fault("/stale", expiry) for expiry in (EXPIRY, EXPIRY, LATER)] == [
        Fault.STALE_URL,
        Fault.STALE_URL,
        None,
    ]
    assert {misbehaviour.next_fault("/gone", expiry) for expiry in (EXPIRY, LATER, LATER)} == {Fault.GONE}


def test_rates_above_one_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 1"):
        Misbehaviour({Fault.SLOW: 0.7, Fault.GONE: 0.4})
