"""Purging, against a stand-in for Cloudflare's API on this machine."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest
import stamina
from pydantic import SecretStr

from cdn_pipeline.cloudflare.purge import CachePurge, PurgeFailedError
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID, Zone, refusal, running_zone

PATH = "/th/ig/owner/avatar/256/0123456789abcdef.webp"
OTHER = "/th/ig/owner2/avatar/256/0123456789abcdef.webp"
PAGE = "https://page.example"


@pytest.fixture
def zone() -> Iterator[Zone]:
    with running_zone(lambda key: key.encode()) as zone:
        yield zone


def purge_prefixes(client: CachePurge, prefixes: Sequence[str]) -> None:
    async def purge() -> None:
        async with client:
            await client.purge_prefixes(prefixes)

    asyncio.run(purge())


def purge_files(client: CachePurge, urls: Sequence[str], origins: Sequence[str] = ()) -> None:
    async def purge() -> None:
        async with client:
            await client.purge_files(urls, origins)

    asyncio.run(purge())


def test_a_prefix_takes_every_copy_under_it_and_no_neighbours(zone: Zone) -> None:
    for path, origin in [(PATH, None), (PATH, PAGE), (OTHER, None)]:
        zone.get(path, origin)
    purge_prefixes(zone.client(), [f"{zone.host}/th/ig/owner"])
    assert set(zone.copies) == {(OTHER, None)}


def test_a_url_alone_leaves_the_copies_of_pages_and_with_their_origins_takes_them(zone: Zone) -> None:
    zone.get(PATH, None)
    zone.get(PATH, PAGE)
    purge_files(zone.client(), [f"{zone.base_url}{PATH}"])
    assert set(zone.copies) == {(PATH, PAGE)}
    purge_files(zone.client(), [f"{zone.base_url}{PATH}"], [PAGE])
    assert not zone.copies


def test_requests_are_as_large_as_cloudflare_takes_them(zone: Zone) -> None:
    purge_prefixes(zone.client(), [f"{zone.host}/{number}" for number in range(61)])
    assert [len(what["prefixes"]) for what in zone.purges] == [30, 30, 1]
    zone.purges.clear()
    purge_files(zone.client(), [f"{zone.base_url}/{number}" for number in range(51)], [PAGE, "https://other.example"])
    assert [len(what["files"]) for what in zone.purges] == [100, 53]


def test_nothing_to_purge_asks_nobody(zone: Zone) -> None:
    purge_prefixes(zone.client(), [])
    purge_files(zone.client(), [])
    assert not zone.purges


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"Retry-After": "0"}, refusal(971, "rate limit")),
        (503, {}, b"<html>unavailable</html>"),
        (500, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, refusal(1000, "internal")),
    ],
    ids=["rate limit", "unavailable", "internal error"],
)
def test_what_passes_is_tried_again(zone: Zone, answer: tuple[int, dict[str, str], object]) -> None:
    zone.answers.append(answer)
    zone.get(PATH, None)
    purge_prefixes(zone.client(), [f"{zone.host}/th"])
    assert (len(zone.purges), zone.copies) == (2, {})


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, refusal(1134, "not your zone")),
        (200, {}, b"[]"),
        (200, {}, {"success": "yes", "errors": 5}),
        (200, {}, b"\xff"),
        (302, {"Location": "/elsewhere"}, b""),
        (404, {}, refusal(7003, "no such zone")),
    ],
)
def test_what_is_no_success_is_a_failure_at_once(zone: Zone, answer: tuple[int, dict[str, str], object]) -> None:
    zone.answers.append(answer)
    with pytest.raises(PurgeFailedError, match=str(answer[0])):
        purge_prefixes(zone.client(), [f"{zone.host}/th"])
    assert len(zone.purges) == 1


def test_a_refused_token_is_named_by_its_variable_and_never_shown(zone: Zone) -> None:
    with pytest.raises(PurgeFailedError, match=r"403.*Authentication error \(10000\).*CF_API_TOKEN") as caught:
        purge_prefixes(zone.client("another-token"), [f"{zone.host}/th"])
    assert "another-token" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_an_api_that_cannot_be_reached_is_a_failure_that_says_so() -> None:
    with running_zone() as zone:
        address = zone.api_url  # nobody listens there any more
    client = CachePurge(ZONE_ID, SecretStr(TOKEN), api_url=address)
    with stamina.set_testing(True), pytest.raises(PurgeFailedError, match="reached: ConnectError") as caught:
        purge_prefixes(client, ["img.example/th"])
    assert TOKEN not in repr(caught.value)
