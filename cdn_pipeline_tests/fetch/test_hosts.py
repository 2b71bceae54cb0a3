import asyncio
import selectors
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.fetch.hosts import TURNS_AT_ONCE, HostRates, host_of, is_instagram

INSTAGRAM_HOST = "scontent-dfw6-1.cdninstagram.com"
OTHER_HOST = "instagram.fcgh3-1.fna.fbcdn.net"


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time: its clock jumps to the next timer."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        super().__init__(selector)
        self._now = 0.0
        select = selector.select

        def jump(timeout: float | None = None) -> Any:
            ready = select(0)
            if not ready and timeout:
                self._now += timeout
            return ready

        selector.select = jump  # type: ignore[method-assign]

    def time(self) -> float:
        return self._now


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
        runner.run(scenario())


class Turns:
    """Grants the turns of a host one after another, as the catalog does for all runs; counts how often it was asked."""

    def __init__(self) -> None:
        self.next: defaultdict[str, float] = defaultdict(float)
        self.asked: Counter[str] = Counter()

    async def __call__(self, host: str, turns: int, spacing: timedelta) -> timedelta:
        now = asyncio.get_running_loop().time()
        first = max(self.next[host], now)
        self.next[host] = first + turns * spacing.total_seconds()
        self.asked[host] += 1
        return timedelta(seconds=first - now)


async def _times_of_turns(rates: HostRates, hosts: list[str]) -> list[float]:
    """When each caller got its turn, in seconds; all come at once."""
    started = asyncio.get_running_loop().time()

    async def turn(host: str) -> float:
        await rates.turn(host)
        return asyncio.get_running_loop().time() - started

    return await asyncio.gather(*(turn(host) for host in hosts))


def test_an_instagram_host_gets_five_requests_a_second_evenly_spaced() -> None:
    async def scenario() -> None:
        turns = Turns()
        times = await _times_of_turns(HostRates(turns), [INSTAGRAM_HOST] * 11)
        assert times == pytest.approx([i / 5 for i in range(11)])
        assert turns.asked[INSTAGRAM_HOST] <= 4  # one alone, then a second's worth at a time

    run(scenario)


def test_each_instagram_host_has_its_own_rate() -> None:
    async def scenario() -> None:
        hosts = [INSTAGRAM_HOST, OTHER_HOST] * 3
        assert await _times_of_turns(HostRates(Turns()), hosts) == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])

    run(scenario)


def test_runs_share_the_rate_of_a_host() -> None:
    async def scenario() -> None:
        turns = Turns()
        runs = [HostRates(turns) for _ in range(3)]
        times = await asyncio.gather(*(_times_of_turns(run, [INSTAGRAM_HOST] * 7) for run in runs))
        gone = sorted(time for run in times for time in run)
        assert gone == pytest.approx([number / 5 for number in range(21)])

    run(scenario)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 5), st.booleans()), max_size=60))
def test_whoever_comes_and_leaves_a_host_is_never_asked_more_often(
    callers: list[tuple[int, float, bool]],
) -> None:
    async def scenario() -> None:
        turns = Turns()
        runs, gone = [HostRates(turns) for _ in range(3)], list[float]()

        async def caller(number: int, comes_after: float) -> None:
            await asyncio.sleep(comes_after)
            await runs[number].turn(INSTAGRAM_HOST)
            gone.append(asyncio.get_running_loop().time())

        tasks = [asyncio.create_task(caller(number, after)) for number, after, _ in callers]
        await asyncio.sleep(2)
        for task, (_, _, leaves) in zip(tasks, callers, strict=True):
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(gone) >= sum(not leaves for *_, leaves in callers)
        gone.sort()
        # A turn is used within its 0.2 s, and none of a run within 0.2 s of the one before.
        assert all(later - earlier > 0.8 - 1e-6 for earlier, later in zip(gone, gone[5:], strict=False))

    run(scenario)


def test_a_host_with_a_seconds_worth_of_callers_is_busy() -> None:
    async def scenario() -> None:
        rates = HostRates(Turns())
        callers = [asyncio.create_task(rates.turn(INSTAGRAM_HOST)) for _ in range(TURNS_AT_ONCE + 1)]
        assert not rates.is_busy(INSTAGRAM_HOST)
        await asyncio.sleep(0.01)
        assert rates.is_busy(INSTAGRAM_HOST)
        assert not rates.is_busy(OTHER_HOST)
        await asyncio.sleep(0.2)
        assert not rates.is_busy(INSTAGRAM_HOST)
        await asyncio.gather(*callers)

    run(scenario)


def test_a_turn_that_comes_too_late_has_lapsed() -> None:
    """Reserved by callers that left: who comes a second later must not go beside the turns of other runs."""

    async def scenario() -> None:
        turns = Turns()
        rates = HostRates(turns)
        await rates.turn(INSTAGRAM_HOST)
        leaving = [asyncio.create_task(rates.turn(INSTAGRAM_HOST)) for _ in range(5)]
        await asyncio.sleep(0.1)
        for task in leaving:
            task.cancel()
        await asyncio.sleep(0.75)  # three of the five turns have lapsed
        assert await _times_of_turns(rates, [INSTAGRAM_HOST] * 3) == pytest.approx([0, 0.2, 0.4], abs=0.151)
        assert turns.asked[INSTAGRAM_HOST] == 3

    run(scenario)


@given(st.text() | st.from_regex(r"https?://[^/]*\.cdninstagram\.com\.?(:\d+)?/x"))
def test_any_text_has_a_host_or_none(text: str) -> None:
    assert not host_of(text).endswith(".")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Scontent.CDNInstagram.com./v/x.jpg?oe=1#f", "scontent.cdninstagram.com"),
        ("https://user:pass@host.example:8443/x", "host.example"),
        ("http://[::1]:80/x", "::1"),
        ("http://[::1/x", ""),
        ("not a URL", ""),
    ],
)
def test_the_host_of_a_url_is_without_case_port_user_and_dot(url: str, host: str) -> None:
    assert host_of(url) == host


def test_other_hosts_are_not_limited() -> None:
    async def scenario() -> None:
        assert set(await _times_of_turns(HostRates(Turns()), ["images.example.com"] * 50)) == {0.0}

    run(scenario)


def test_the_rate_does_not_save_up_turns_over_a_pause() -> None:
    async def scenario() -> None:
        rates = HostRates(Turns())
        await rates.turn(INSTAGRAM_HOST)
        await asyncio.sleep(60)
        assert await _times_of_turns(rates, [INSTAGRAM_HOST] * 3) == pytest.approx([0, 0.2, 0.4])

    run(scenario)


def test_callers_go_in_the_order_they_came() -> None:
    async def scenario() -> None:
        rates, gone = HostRates(Turns()), list[int]()

        async def caller(number: int) -> None:
            await rates.turn(INSTAGRAM_HOST)
            gone.append(number)

        async with asyncio.TaskGroup() as callers:
            for number in range(20):
                callers.create_task(caller(number))
        assert gone == list(range(20))

    run(scenario)


@pytest.mark.parametrize("leaver", [1, 2])
def test_a_cancelled_caller_gives_its_turn_to_the_next_one(leaver: int) -> None:
    """Number 1 waits for its time, number 2 for number 1."""

    async def scenario() -> None:
        rates, times = HostRates(Turns()), dict[int, float]()

        async def caller(number: int) -> None:
            await rates.turn(INSTAGRAM_HOST)
            times[number] = asyncio.get_running_loop().time()

        callers = [asyncio.create_task(caller(number)) for number in range(4)]
        await asyncio.sleep(0.1)
        callers[leaver].cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        assert list(times) == [number for number in range(4) if number != leaver]
        assert list(times.values()) == pytest.approx([0, 0.2, 0.4])

    run(scenario)


def test_a_host_of_instagram_that_leads_into_an_allowed_network_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdn_pipeline.fetch.hosts.INSTAGRAM_DOMAINS", ("localhost",))

    async def scenario() -> None:
        ours = HostRates(Turns(), allowed_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")))
        for _ in range(20):
            await ours.turn("localhost")
        others = HostRates(Turns(), allowed_networks=(ip_network("10.0.0.0/8"),))
        assert await _times_of_turns(others, ["localhost"] * 3)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("cdninstagram.com", True),
        ("scontent.cdninstagram.com", True),
        ("scontent-ber1-1.xx.fbcdn.net", True),
        ("notcdninstagram.com", False),
        ("fbcdn.net.example.com", False),
        ("127.0.0.1", False),
    ],
)
def test_instagram_is_known_by_its_domains(host: str, expected: bool) -> None:
    assert is_instagram(host) is expected
