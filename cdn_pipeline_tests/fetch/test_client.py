import asyncio
import gzip
import ssl
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.failures import FailureKind, ImageFailure, Remedy
from cdn_pipeline.fetch.client import Download, Downloader, DownloadLimits, NotModified
from cdn_pipeline.settings import Network
from cdn_pipeline_tests.fetch.origins import PHOTOGRAPH, Answer, Origin, always, by_path, origin, response

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)
QUICK = DownloadLimits(connect_seconds=2.0, read_seconds=0.2, total_seconds=5.0, max_bytes=100_000)
SIGNED = "/v/t51.2885-15/1_2_3_n.jpg?stp=dst-jpg&oh=00_Af4711&oe={oe:X}"


def download(answer: Answer, target: str = "/a.jpg", limits: DownloadLimits = QUICK) -> tuple[Download, Origin]:
    async def scenario() -> tuple[Download, Origin]:
        async with origin(answer) as log, Downloader(allowed_networks=LOOPBACK, limits=limits) as downloader:
            return await downloader.download(log.base + target), log

    return asyncio.run(scenario())


def failure(answer: Answer, target: str = "/a.jpg", limits: DownloadLimits = QUICK) -> ImageFailure:
    with pytest.raises(ImageFailure) as failed:
        download(answer, target, limits)
    return failed.value


# What arrives


def test_an_image_arrives_whole_with_what_the_next_download_needs_to_know() -> None:
    headers = {"Content-Type": "image/jpeg", "ETag": '"4711"', "Last-Modified": "Fri, 21 Nov 2025 12:00:00 GMT"}
    image, log = download(always(response(headers=headers)))
    assert image.data == PHOTOGRAPH
    assert (image.status, image.content_type, image.etag) == (200, "image/jpeg", '"4711"')
    assert image.last_modified == "Fri, 21 Nov 2025 12:00:00 GMT"
    assert image.final_url == f"{log.base}/a.jpg"
    assert image.milliseconds >= 0


def test_the_request_says_who_asks_and_for_what() -> None:
    _, log = download(always(response()))
    assert b"\r\nUser-Agent: cdn-pipeline/" in log.requests[0]
    assert b"\r\nAccept: image/*\r\n" in log.requests[0]


@pytest.mark.parametrize("content_type", ["text/html", "application/octet-stream", "image/png"])
def test_the_type_is_told_by_the_bytes_and_not_by_header_or_suffix(content_type: str) -> None:
    image, _ = download(always(response(headers={"Content-Type": content_type})), "/a.heic")
    assert image.data == PHOTOGRAPH


def test_a_chunked_image_arrives_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (PHOTOGRAPH[:10], PHOTOGRAPH[10:])]
    assert download(always(head, *chunks, b"0\r\n\r\n"))[0].data == PHOTOGRAPH


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes), ("GZIP", gzip.compress)],
)
def test_an_encoded_image_is_decoded(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    body = encode(PHOTOGRAPH)
    assert download(always(response(body=body, headers={"Content-Encoding": encoding})))[0].data == PHOTOGRAPH


# The URL goes out as it came


@pytest.mark.parametrize(
    "target",
    [
        "/v/t51/%41b%7e_n.jpg?stp=dst%2djpg&a=%2B+%3D%2b%3d&efg=eyJ9==&x=a|b&y='q'&e=&=1&&f;g",
        "/a/../b/./c//d.jpg?x=%zz&oh=00_AfA%20",
        "/p%2Fq.jpg?u=http://a/?b=@c:d",
    ],
)
def test_the_url_is_sent_byte_for_byte(target: str) -> None:
    assert download(always(response()), target)[1].targets == [target]


_URL_CHARACTERS = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(targets=st.lists(st.text(_URL_CHARACTERS, min_size=1, max_size=40), min_size=5, max_size=20))
def test_any_query_is_sent_byte_for_byte(targets: list[str]) -> None:
    async def scenario() -> None:
        async with origin(always(response())) as log, Downloader(allowed_networks=LOOPBACK) as downloader:
            for query in targets:
                await downloader.download(f"{log.base}/a.jpg?{query}")
            assert log.targets == [f"/a.jpg?{query}" for query in targets]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "url",
    [
        "ftp://scontent.cdninstagram.com/a.jpg",
        "file:///etc/passwd",
        "/a.jpg",
        "",
        "http://",
        "http:///a.jpg",
        "http://[::1/a.jpg",
        "http://scontent.cdninstagram.com:port/a.jpg",
        "http://scontent.cdninstagram.com:99999/a.jpg",
        "http://scontent.cdninstagram.com/a b.jpg",
        "http://scontent.cdninstagram.com/é.jpg",
        "http://scontent.cdninstagram.com/a.jpg\r\nX-Injected: 1",
        f"http://{'a' * 64}.cdninstagram.com/a.jpg",
    ],
)
def test_what_no_request_line_can_carry_is_refused(url: str) -> None:
    assert _refused(url).kind is FailureKind.BLOCKED_ADDRESS


# Which addresses are dialled


def _refused(url: str, allowed_networks: tuple[Network, ...] = ()) -> ImageFailure:
    async def scenario() -> None:
        async with Downloader(allowed_networks=allowed_networks, limits=QUICK) as downloader:
            await downloader.download(url)

    with pytest.raises(ImageFailure) as failed:
        asyncio.run(scenario())
    return failed.value


def _blocked_origin(host: str) -> tuple[ImageFailure, Origin]:
    """What comes of a download from an origin on loopback that no setting allows."""

    async def scenario() -> tuple[ImageFailure, Origin]:
        async with origin(always(response())) as log, Downloader(limits=QUICK) as downloader:
            with pytest.raises(ImageFailure) as failed:
                await downloader.download(f"http://{host}:{log.port}/a.jpg")
            return failed.value, log

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "0",
        "0.0.0.0",
        "localhost",
        "LOCALHOST",
        "127.0.0.1.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "scontent.cdninstagram.com@127.0.0.1",
    ],
)
def test_no_spelling_of_loopback_is_dialled(host: str) -> None:
    failed, log = _blocked_origin(host)
    assert failed.kind is FailureKind.BLOCKED_ADDRESS
    assert log.connections == 0


@pytest.mark.parametrize("host", ["localhost.", "localhost.."])
def test_a_name_that_only_some_resolvers_know_is_not_dialled_either(host: str) -> None:
    failed, log = _blocked_origin(host)
    assert failed.kind in (FailureKind.BLOCKED_ADDRESS, FailureKind.CONNECTION_FAILED)
    assert log.connections == 0


def test_a_blocked_address_is_named() -> None:
    assert str(_refused("http://10.1.2.3/a.jpg")) == "blocked_address: 10.1.2.3 leads to 10.1.2.3 port 80"


def test_a_public_address_is_refused_on_other_ports() -> None:
    assert _refused("http://157.240.22.63:8080/a.jpg").kind is FailureKind.BLOCKED_ADDRESS


def test_a_private_address_outside_the_allowed_networks_is_refused() -> None:
    assert _refused("http://10.1.2.3/a.jpg", LOOPBACK).kind is FailureKind.BLOCKED_ADDRESS


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Origin:
        async with origin(always(response())) as proxy:
            for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(variable, proxy.base)
            async with origin(always(response())) as log, Downloader(allowed_networks=LOOPBACK) as downloader:
                await downloader.download(log.base)
            return proxy

    assert asyncio.run(scenario()).connections == 0


# Redirects


def _redirect(location: str, status: int = 302) -> bytes:
    return response(status, b"", headers={"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_and_its_location_sent_byte_for_byte(status: int) -> None:
    image, log = download(by_path({"/a.jpg": _redirect("/b.jpg?oh=%7e%2b", status), "/b.jpg": response()}))
    assert log.targets == ["/a.jpg", "/b.jpg?oh=%7e%2b"]
    assert image.final_url == f"{log.base}/b.jpg?oh=%7e%2b"


def test_three_redirects_are_followed_and_the_fourth_is_not() -> None:
    hops = {
        "/0": _redirect("/1"),
        "/1": _redirect("/2"),
        "/2": _redirect("/3"),
        "/3": _redirect("/4"),
        "/4": response(),
    }
    assert len(download(by_path(hops), "/1")[1].targets) == 4
    assert failure(by_path(hops), "/0").kind is FailureKind.TOO_MANY_REDIRECTS


@pytest.mark.parametrize(
    "location", ["http://127.0.0.2:{port}/", "http://[::ffff:127.0.0.2]:{port}/", "//127.0.0.2:{port}/"]
)
def test_a_redirect_to_an_address_that_is_not_allowed_is_not_dialled(location: str) -> None:
    only_the_origin: tuple[Network, ...] = (ip_network("127.0.0.1/32"),)

    async def scenario() -> Origin:
        async with origin(always(response())) as target:
            answer = always(_redirect(location.format(port=target.port)))
            async with origin(answer) as log, Downloader(allowed_networks=only_the_origin) as downloader:
                with pytest.raises(ImageFailure) as failed:
                    await downloader.download(log.base)
            assert failed.value.kind is FailureKind.BLOCKED_ADDRESS
            return target

    assert asyncio.run(scenario()).connections == 0


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/a.jpg", "file:///etc/passwd", "data:image/png;base64,AAAA"])
def test_a_redirect_to_another_scheme_is_refused(location: str) -> None:
    assert failure(always(_redirect(location))).kind is FailureKind.BLOCKED_ADDRESS


@pytest.mark.parametrize("answer", [response(302, b""), _redirect("http://[::1/a.jpg")])
def test_a_redirect_to_nowhere_is_an_error_of_the_source(answer: bytes) -> None:
    assert failure(always(answer)).kind is FailureKind.SOURCE_ERROR


# What the status says


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, FailureKind.SOURCE_FORBIDDEN),
        (403, FailureKind.SOURCE_FORBIDDEN),
        (404, FailureKind.SOURCE_URL_404),
        (410, FailureKind.SOURCE_URL_404),
        (429, FailureKind.RATE_LIMITED),
        (201, FailureKind.SOURCE_ERROR),
        (204, FailureKind.SOURCE_ERROR),
        (206, FailureKind.SOURCE_ERROR),
        (304, FailureKind.SOURCE_ERROR),
        (400, FailureKind.SOURCE_ERROR),
        (500, FailureKind.SOURCE_ERROR),
        (503, FailureKind.SOURCE_ERROR),
        (613, FailureKind.SOURCE_ERROR),
    ],
)
def test_every_status_but_200_is_a_failure_of_its_kind(status: int, kind: FailureKind) -> None:
    failed = failure(
        always(response(status, b"" if status in (204, 304) else PHOTOGRAPH)), SIGNED.format(oe=0x70000000)
    )
    assert failed.kind is kind
    assert str(status) in failed.detail
    assert "oh=" not in failed.detail


# Names of tests must be the same in every worker process, so no moment of its own stands among their parameters.
PAST, FUTURE = 1_600_000_000, 4_000_000_000


@pytest.mark.parametrize(
    ("body", "expiry", "kind"),
    [
        (b"URL signature expired", FUTURE, FailureKind.SOURCE_URL_EXPIRED),
        (b"URL signature mismatch", FUTURE, FailureKind.SIGNATURE_MISMATCH),
        (b"URL signature mismatch", PAST, FailureKind.SIGNATURE_MISMATCH),
        (b"Bad URL timestamp", FUTURE, FailureKind.SIGNATURE_MISMATCH),
        (b"Bad URL timestamp", PAST, FailureKind.SOURCE_URL_EXPIRED),
        (b"Bad URL hash", FUTURE, FailureKind.SIGNATURE_MISMATCH),
        (b"Bad URL hash", PAST, FailureKind.SOURCE_URL_EXPIRED),
        (b"<html>Log in</html>", PAST, FailureKind.SOURCE_FORBIDDEN),
        (b"", PAST, FailureKind.SOURCE_FORBIDDEN),
    ],
)
def test_the_text_of_a_403_tells_what_became_of_the_signature(body: bytes, expiry: int, kind: FailureKind) -> None:
    failed = failure(always(response(403, body)), SIGNED.format(oe=expiry))
    assert failed.kind is kind
    assert failed.kind.remedy is Remedy.FRESH_URL
    assert body.decode() in failed.detail


@pytest.mark.parametrize("target", ["/a.jpg", "/a.jpg?oe=soon", "/a.jpg?oe="])
def test_a_bad_hash_without_a_readable_expiry_is_a_mismatch(target: str) -> None:
    assert failure(always(response(403, b"Bad URL hash")), target).kind is FailureKind.SIGNATURE_MISMATCH


def test_the_body_of_a_403_is_not_read_to_its_end() -> None:
    assert failure(endless(response(403, b"no" * 200, length=10**9))).kind is FailureKind.SOURCE_FORBIDDEN


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("120", 120, 120),
        ("0", 0, 0),
        ("Fri, 21 Nov 2014 12:00:00 GMT", 0, 0),
        ("-5", None, None),
        ("9" * 400, 86_400, 86_400),
        ("9" * 5000, None, None),
        ("soon", None, None),
        ("", None, None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None, None),
    ],
)
def test_retry_after_is_understood_as_seconds_or_date(
    status: int, header: str, low: float | None, high: float | None
) -> None:
    wait = failure(always(response(status, headers={"Retry-After": header}))).retry_after_seconds
    if low is None or high is None:
        assert wait is None
    else:
        assert wait is not None
        assert low <= wait <= high


def test_retry_after_may_be_a_date_in_an_hour() -> None:
    header = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    wait = failure(always(response(429, headers={"Retry-After": header}))).retry_after_seconds
    assert wait is not None
    assert 3000 <= wait <= 3600


# Conditional requests

LAST_MODIFIED = "Fri, 21 Nov 2025 12:00:00 GMT"
NOT_MODIFIED = response(304, b"", headers={"ETag": '"4711"'})


def ask(
    answer: Answer, target: str = "/a.jpg", *, etag: str | None = None, last_modified: str | None = None
) -> tuple[Download | NotModified, Origin]:
    async def scenario() -> tuple[Download | NotModified, Origin]:
        async with origin(answer) as log, Downloader(allowed_networks=LOOPBACK, limits=QUICK) as downloader:
            return await downloader.download(log.base + target, etag=etag, last_modified=last_modified), log

    return asyncio.run(scenario())


def conditions(request: bytes) -> dict[str, str]:
    """The conditional headers of a request, as sent."""
    lines = (line.partition(": ") for line in request.decode().split("\r\n"))
    return {name: value for name, _, value in lines if name.startswith("If-")}


def test_a_picture_that_is_still_the_same_is_not_downloaded() -> None:
    answer, log = ask(always(NOT_MODIFIED), etag='"4711"', last_modified=LAST_MODIFIED)
    assert isinstance(answer, NotModified)
    assert answer.milliseconds >= 0
    assert conditions(log.requests[0]) == {"If-None-Match": '"4711"', "If-Modified-Since": LAST_MODIFIED}


@pytest.mark.parametrize(
    ("etag", "last_modified", "sent"),
    [
        ('W/"47 11"', None, {"If-None-Match": 'W/"47 11"'}),
        (None, LAST_MODIFIED, {"If-Modified-Since": LAST_MODIFIED}),
        ("", "", {}),
        (None, None, {}),
    ],
)
def test_a_picture_is_asked_for_by_what_is_known_of_it(
    etag: str | None, last_modified: str | None, sent: dict[str, str]
) -> None:
    answer, log = ask(always(response()), etag=etag, last_modified=last_modified)
    assert isinstance(answer, Download)
    assert answer.data == PHOTOGRAPH
    assert conditions(log.requests[0]) == sent


def test_a_304_that_nobody_asked_for_is_an_error_of_the_source() -> None:
    with pytest.raises(ImageFailure) as failed:
        ask(always(NOT_MODIFIED), etag=None, last_modified="")
    assert failed.value.kind is FailureKind.SOURCE_ERROR


def test_a_redirect_on_the_same_host_takes_the_conditions_along() -> None:
    answer, log = ask(by_path({"/a.jpg": _redirect("/b.jpg"), "/b.jpg": NOT_MODIFIED}), etag='"4711"')
    assert isinstance(answer, NotModified)
    assert [conditions(request) for request in log.requests] == [{"If-None-Match": '"4711"'}] * 2


def test_a_redirect_to_another_host_leaves_the_conditions_behind_for_good() -> None:
    async def scenario() -> tuple[ImageFailure, list[Origin]]:
        hops: dict[str, bytes] = {"/back.jpg": NOT_MODIFIED}
        async with origin(by_path(hops)) as first, Downloader(allowed_networks=LOOPBACK) as downloader:
            async with origin(always(_redirect(f"{first.base}/back.jpg"))) as second:
                hops["/a.jpg"] = _redirect(f"{second.base}/b.jpg")
                with pytest.raises(ImageFailure) as failed:
                    await downloader.download(f"{first.base}/a.jpg", etag='"4711"')
            return failed.value, [first, second]

    failed, (first, second) = asyncio.run(scenario())
    assert failed.kind is FailureKind.SOURCE_ERROR
    assert [conditions(request) for request in first.requests] == [{"If-None-Match": '"4711"'}, {}]
    assert conditions(second.requests[0]) == {}


# Broken, slow and hostile bodies


def endless(start: bytes, pause: float = 0.0) -> Answer:
    """Sends until the other side hangs up."""

    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(b"\0")
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


def silent_after(start: bytes) -> Answer:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await asyncio.sleep(60)

    return answer


def reset_after(start: bytes) -> Answer:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()
        await asyncio.sleep(0.05)  # so that the start arrives before the reset
        writer.transport.abort()

    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIPPED = gzip.compress(PHOTOGRAPH)


@pytest.mark.parametrize(
    "answer",
    [
        always(response(length=len(PHOTOGRAPH) + 1)),
        always(response(body=b"", length=100)),
        always(CHUNKED + b"100\r\n" + PHOTOGRAPH[:40]),
        always(response(body=GZIPPED[:-20], headers={"Content-Encoding": "gzip"})),
        reset_after(response(length=100_000)),
    ],
    ids=["short", "nothing", "chunk", "gzip", "reset"],
)
def test_a_truncated_download_is_transient(answer: Answer) -> None:
    failed = failure(answer)
    assert failed.kind is FailureKind.TRUNCATED_DOWNLOAD
    assert failed.kind.remedy is Remedy.TRANSIENT


def test_an_empty_body_is_a_truncated_download() -> None:
    assert failure(always(response(body=b""))).kind is FailureKind.TRUNCATED_DOWNLOAD


@pytest.mark.parametrize("start", [b"", response(length=100_000)], ids=["before the answer", "within the body"])
def test_a_silent_host_is_a_timeout(start: bytes) -> None:
    failed = failure(silent_after(start), SIGNED.format(oe=1))
    assert failed.kind is FailureKind.DOWNLOAD_TIMEOUT
    assert "oh=" not in failed.detail


def test_a_slow_drip_ends_at_the_total_limit() -> None:
    limits = DownloadLimits(read_seconds=5.0, total_seconds=0.4)
    assert failure(endless(response(length=10**6), 0.02), limits=limits).kind is FailureKind.DOWNLOAD_TIMEOUT


def test_the_total_limit_covers_all_redirects_together() -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(_redirect("/again"))

    limits = DownloadLimits(total_seconds=0.8)
    assert failure(answer, limits=limits).kind is FailureKind.DOWNLOAD_TIMEOUT


def test_a_declared_size_above_the_limit_is_refused_before_the_body() -> None:
    failed = failure(silent_after(response(body=b"", length=QUICK.max_bytes + 1)))
    assert failed.kind is FailureKind.IMAGE_TOO_LARGE


def test_a_size_above_the_limit_is_refused_without_a_declaration() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    assert failure(endless(head + PHOTOGRAPH + bytes(QUICK.max_bytes))).kind is FailureKind.IMAGE_TOO_LARGE


def test_an_image_of_just_the_limit_is_downloaded() -> None:
    limits = DownloadLimits(max_bytes=len(PHOTOGRAPH))
    assert download(always(response()), limits=limits)[0].data == PHOTOGRAPH


def test_a_decompression_bomb_stops_at_the_limit() -> None:
    bomb = gzip.compress(PHOTOGRAPH + bytes(50_000_000))
    assert len(bomb) < QUICK.max_bytes
    failed = failure(always(response(body=bomb, headers={"Content-Encoding": "gzip"})))
    assert failed.kind is FailureKind.IMAGE_TOO_LARGE


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "gzip"])
def test_an_encoding_that_cannot_be_undone_is_an_error_of_the_source(encoding: str) -> None:
    failed = failure(always(response(body=PHOTOGRAPH, headers={"Content-Encoding": encoding})))
    assert failed.kind is FailureKind.SOURCE_ERROR


@pytest.mark.parametrize(
    "body",
    [b"<!DOCTYPE html><title>Log in</title>" * 2, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"{}", b"\0" * 100],
)
def test_what_does_not_begin_like_an_image_is_none(body: bytes) -> None:
    failed = failure(always(response(body=body, headers={"Content-Type": "image/jpeg"})))
    assert failed.kind is FailureKind.NOT_AN_IMAGE
    assert failed.detail.startswith("image/jpeg: ")
    assert len(failed.detail) <= 80
    assert failed.detail.isprintable()


def test_what_does_not_begin_like_an_image_is_not_read_to_its_end() -> None:
    assert failure(endless(b"HTTP/1.1 200 OK\r\n\r\n<html>" + b" " * 60)).kind is FailureKind.NOT_AN_IMAGE


@pytest.mark.parametrize("answer", [always(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), always(b"\0" * 200)], ids=["ssh", "zeros"])
def test_what_is_not_http_is_an_error_of_the_source(answer: Answer) -> None:
    assert failure(answer).kind is FailureKind.SOURCE_ERROR


# Connections


def test_a_refused_connection_is_a_failed_connection() -> None:
    async def closed_port() -> int:
        async with origin(always()) as log:
            return log.port

    port = asyncio.run(closed_port())
    assert _refused(f"http://127.0.0.1:{port}/", LOOPBACK).kind is FailureKind.CONNECTION_FAILED


@pytest.mark.parametrize("answer", [always(), reset_after(b"")], ids=["closed", "reset"])
def test_a_connection_lost_before_the_answer_is_a_failed_connection(answer: Answer) -> None:
    assert failure(answer).kind is FailureKind.CONNECTION_FAILED


def test_cookies_are_not_kept() -> None:
    async def scenario() -> Origin:
        answer = always(response(headers={"Set-Cookie": "session=1; Path=/"}))
        async with origin(answer) as log, Downloader(allowed_networks=LOOPBACK) as downloader:
            for _ in range(2):
                await downloader.download(log.base.replace("127.0.0.1", "localhost"))
            return log

    assert all(b"cookie" not in request.lower() for request in asyncio.run(scenario()).requests)


def test_no_more_than_concurrency_downloads_run_at_once_and_all_are_served() -> None:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(response())

    async def scenario() -> Origin:
        async with origin(answer) as log, Downloader(allowed_networks=LOOPBACK, concurrency=3) as downloader:
            await asyncio.gather(*(downloader.download(log.base) for _ in range(20)))
            return log

    log = asyncio.run(scenario())
    assert log.connections == 20
    assert log.most_open <= 3


def test_a_cancelled_download_gives_its_place_to_the_next() -> None:
    arrived = asyncio.Event()

    async def answer(target: str, writer: asyncio.StreamWriter) -> None:
        if target == "/hangs":
            arrived.set()
            await asyncio.sleep(60)
        writer.write(response())

    async def scenario() -> None:
        async with origin(answer) as log, Downloader(allowed_networks=LOOPBACK, concurrency=1) as downloader:
            hanging = asyncio.create_task(downloader.download(f"{log.base}/hangs"))
            await arrived.wait()
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
            assert (await downloader.download(log.base)).data == PHOTOGRAPH

    asyncio.run(scenario())


# TLS


@pytest.fixture
def server_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate for 127.0.0.1, which this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test origin")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context


def _https(answer: Answer, tls: ssl.SSLContext) -> Download:
    async def scenario() -> Download:
        async with origin(answer, tls) as log, Downloader(allowed_networks=LOOPBACK, limits=QUICK) as downloader:
            return await downloader.download(f"https://127.0.0.1:{log.port}/a.jpg")

    return asyncio.run(scenario())


def test_an_image_arrives_over_https(server_tls: ssl.SSLContext) -> None:
    assert _https(always(response()), server_tls).data == PHOTOGRAPH


def test_a_certificate_nobody_vouches_for_is_a_failed_connection(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ImageFailure) as failed:
        _https(always(response()), server_tls)
    assert failed.value.kind is FailureKind.CONNECTION_FAILED


def test_a_redirect_from_https_to_http_is_refused(server_tls: ssl.SSLContext) -> None:
    with pytest.raises(ImageFailure) as failed:
        _https(always(_redirect("http://127.0.0.1/a.jpg")), server_tls)
    assert failed.value.kind is FailureKind.BLOCKED_ADDRESS
    assert "https to http" in failed.value.detail


def test_a_host_that_does_not_speak_tls_is_a_failed_connection() -> None:
    async def speak_first(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response())
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(speak_first, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Downloader(allowed_networks=LOOPBACK, limits=QUICK) as downloader:
            await downloader.download(f"https://127.0.0.1:{port}/a.jpg")

    with pytest.raises(ImageFailure) as failed:
        asyncio.run(scenario())
    assert failed.value.kind is FailureKind.CONNECTION_FAILED
