"""A delaying proxy passes everything on, whole and in order, but not at once."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.latency import DelayingProxy

SECONDS = 0.02


async def _turn_round(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that answers a request with its bytes in reverse, once it has all of them."""
    writer.write((await reader.read())[::-1])
    writer.close()


async def _ask(proxy_port: int, pieces: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy_port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def _through(pieces: list[bytes]) -> tuple[bytes, float]:
    """The answer, and the seconds it took."""
    server = await asyncio.start_server(_turn_round, "127.0.0.1", 0)
    async with server:
        in_front = await DelayingProxy(server.sockets[0].getsockname()[1], SECONDS).serve(0)
        async with in_front:
            loop = asyncio.get_running_loop()
            began = loop.time()
            answer = await _ask(in_front.sockets[0].getsockname()[1], pieces)
            return answer, loop.time() - began


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200_000), min_size=1, max_size=5))
def test_what_goes_through_arrives_whole_and_in_order_after_two_round_trips_at_the_earliest(
    pieces: list[bytes],
) -> None:
    answer, seconds = asyncio.run(_through(pieces))
    assert answer == b"".join(pieces)[::-1]
    assert seconds >= 2 * SECONDS


def test_a_server_that_is_away_ends_the_connection() -> None:
    async def ask_nobody() -> bytes:
        async with await DelayingProxy(1, SECONDS).serve(0) as in_front:
            return await _ask(in_front.sockets[0].getsockname()[1], [b"anybody?"])

    assert asyncio.run(ask_nobody()) == b""
