"""The front passes everything on, unless a fault says otherwise."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import httpx
import pytest

from benchmarks.chaos import faults
from benchmarks.chaos.front import Front, running_front
from cdn_pipeline.demo.origin import Origin
from cdn_pipeline.store.objects import ObjectHead, ObjectStore
from cdn_pipeline_tests.s3 import S3Server, moto_server

__all__ = ["moto_server"]


@pytest.fixture
def front(origin: Origin) -> Iterator[Front]:
    with running_front(origin.base_url) as front:
        yield front


def test_a_front_that_behaves_passes_requests_and_answers_on(front: Front) -> None:
    answer = httpx.post(f"{front.url}/_admin/clock", json={"advance_seconds": 60})
    assert answer.json()["offset_seconds"] == 60
    assert httpx.get(f"{front.url}/_admin/clock").json()["offset_seconds"] == 60
    assert (front.answered, front.spoilt) == (2, 0)


@pytest.fixture
def store_front(moto_server: S3Server) -> Iterator[Front]:
    with running_front(moto_server.endpoint_url) as front:
        yield front


def through(front: Front, server: S3Server, bucket: str) -> ObjectStore:
    return replace(server, endpoint_url=front.url).store(f"s3://{bucket}")


def test_an_object_that_goes_through_the_front_is_the_same_object(store_front: Front, moto_server: S3Server) -> None:
    bucket = moto_server.new_bucket()
    store = through(store_front, moto_server, bucket)

    async def put_and_look() -> ObjectHead | None:
        await store.put_new("a/key with blanks", b"bytes", content_type="image/webp", metadata={"owner": "somebody"})
        return await store.head("a/key with blanks")

    head = asyncio.run(put_and_look())
    assert head is not None
    assert (head.size, head.content_type, head.metadata) == (5, "image/webp", {"owner": "somebody"})
    assert httpx.get(moto_server.presigned_url(bucket, "a/key with blanks")).content == b"bytes"


def test_a_liar_is_believed_until_somebody_looks(store_front: Front, moto_server: S3Server) -> None:
    store = through(store_front, moto_server, moto_server.new_bucket())
    store_front.fault = faults.lies

    async def put_and_look() -> tuple[bool, bool]:
        return await store.put_new("key", b"bytes", content_type="image/webp"), await store.stored("key", b"bytes")

    assert asyncio.run(put_and_look()) == (True, False)


def test_a_reset_is_no_answer(front: Front) -> None:
    front.fault = faults.resets
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{front.url}/_admin/clock")


def test_an_outage_ends_and_leaves_what_follows(front: Front) -> None:
    front.fault = faults.at_first(faults.answers(500), 0.0, then=faults.answers(503))
    assert httpx.get(f"{front.url}/_admin/clock").status_code == 503


def test_the_same_seed_spoils_the_same_requests(front: Front) -> None:
    def statuses() -> list[int]:
        front.fault = faults.sometimes(faults.answers(500), 0.5, Random(1))
        return [httpx.get(f"{front.url}/_admin/clock").status_code for _ in range(8)]

    first = statuses()
    assert set(first) == {200, 500}
    assert statuses() == first


def test_a_redirect_loop_never_ends(front: Front) -> None:
    front.fault = faults.redirects_to_itself
    with pytest.raises(httpx.TooManyRedirects):
        httpx.get(f"{front.url}/somewhere?signed=1", follow_redirects=True)


@pytest.mark.parametrize("fault", [faults.hangs, faults.drips])
def test_who_does_not_get_an_answer_gives_up(front: Front, fault: faults.Fault) -> None:
    front.fault = fault
    client = httpx.Client(timeout=0.2)  # of silence: less than between two drips
    with client, pytest.raises(httpx.ReadTimeout):
        client.get(f"{front.url}/_admin/clock")
