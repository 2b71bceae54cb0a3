import asyncio
import selectors
from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from typing import Any

import pytest

from cdn_pipeline.fetch.hosts import HostRates, is_instagram

INSTAGRAM_HOST = "scontent-dfw6-1.cdninstagram.com"


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


async def _times_of_turns(rates: HostRates, hosts: list[str]) -> list[float]:
    """When each caller got its turn, in seconds; all come at once."""
    started = asyncio.get_running_loop().time()

    async def turn(host: str) -> float:
        await rates.turn(host)
        return asyncio.get_running_loop().time() - started

    return await asyncio.gather(*(turn(host) for host in hosts))


def test_an_instagram_host_gets_five_requests_a_second_evenly_spaced() -> None:
    async def scenario() -> None:
        times = await _times_of_turns(HostRates(), [INSTAGRAM_HOST] * 11)
        assert times == pytest.approx([i / 5 for i in range(11)])

    run(scenario)


def test_each_instagram_host_has_its_own_rate() -> None:
    async def scenario() -> None:
        hosts = [INSTAGRAM_HOST, "instagram.fcgh3-1.fna.fbcdn.net"] * 3
        assert await _times_of_turns(HostRates(), hosts) == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])

    run(scenario)


def test_spellings_of_one_host_share_its_rate() -> None:
    async def scenario() -> None:
        hosts = [INSTAGRAM_HOST, INSTAGRAM_HOST.upper(), INSTAGRAM_HOST + "."]
        assert await _times_of_turns(HostRates(), hosts) == pytest.approx([0, 0.2, 0.4])

    run(scenario)


def test_other_hosts_are_not_limited() -> None:
    async def scenario() -> None:
        assert set(await _times_of_turns(HostRates(), ["images.example.com"] * 50)) == {0.0}

    run(scenario)


def test_the_rate_does_not_save_up_turns_over_a_pause() -> None:
    async def scenario() -> None:
        rates = HostRates()
        await rates.turn(INSTAGRAM_HOST)
        await asyncio.sleep(60)
        assert await _times_of_turns(rates, [INSTAGRAM_HOST] * 3) == pytest.approx([0, 0.2, 0.4])

    run(scenario)


def test_callers_go_in_the_order_they_came() -> None:
    async def scenario() -> None:
        rates, gone = HostRates(), list[int]()

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
        rates, times = HostRates(), dict[int, float]()

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
        ours = HostRates(allowed_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")))
        for _ in range(20):
            await ours.turn("localhost")
        others = HostRates(allowed_networks=(ip_network("10.0.0.0/8"),))
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
