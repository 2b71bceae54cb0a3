"""Nothing is reached but what is allowed, whatever a URL, a redirect or a name server says.

Three proofs at once: listeners on loopback stay silent, the record of all dials holds nothing but allowed addresses,
and the failure is `blocked_address` (or that there is no such host).
"""

import asyncio
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from urllib.parse import unquote

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdn_pipeline.demo.app_database import create_tables, profiles_table
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.client import Download, Downloader, DownloadLimits
from cdn_pipeline.settings import Network, Settings
from cdn_pipeline_tests.engine.runs import assert_nothing_in_hand, images, run
from cdn_pipeline_tests.fetch.loopback import FORBIDDEN_HOSTS, Names, Witnesses, names, recorded_dials, witnesses
from cdn_pipeline_tests.fetch.origins import PHOTOGRAPH, Origin, always, origin, response

__all__ = ["names"]

QUICK = DownloadLimits(connect_seconds=2.0, read_seconds=0.2, total_seconds=3.0)
ONLY_THE_ORIGIN: tuple[Network, ...] = (IPv4Network("127.0.0.1/32"),)
EVERYTHING: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
NO_SUCH_HOST = {FailureKind.BLOCKED_ADDRESS, FailureKind.CONNECTION_FAILED}

# {port} is that of listeners on 127.0.0.1, elsewhere in 127/8 and ::1; without it, 80 and 443 are meant.
SPELLINGS_OF_LOOPBACK = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1/",
    "https://127.0.0.1/",
    "https://127.0.0.1:{port}/",
    "http://127.0.0.1:080/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1.:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0000177.0.0.01:{port}/",
    "http://0177.0000001:{port}/",
    "http://017700000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7F.0x0.0x0.0x1:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://2130706433:{port}/",
    "http://2130706433/",
    "http://6425673729:{port}/",
    "http://0:{port}/",
    "http://0/",
    "http://0.0.0.0:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.66051:{port}/",
    "http://127.255.255.254:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://localhost/",
    "HtTp://127.0.0.1:{port}/",
]
IPV6 = [
    "http://[::1]:{port}/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[0000::0001]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::FFFF:7F00:0001]:{port}/",
    "http://[0:0:0:0:0:ffff:127.0.0.2]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b:1::127.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "http://[2a00:1450::5efe:127.0.0.1]/",
    "http://[::1%25lo]:{port}/",
    "http://[::1%lo]:{port}/",
    "http://[::1%251]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[fd00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[127.0.0.1]:{port}/",
    "http://[::1]@127.0.0.1:{port}/",
]
CONFUSED_PARSERS = [
    "http://user@127.0.0.1:{port}/",
    "http://user:pass@127.0.0.1:{port}/",
    "http://cdn.example@127.0.0.1:{port}/",
    "http://cdn.example:80@127.0.0.1:{port}/",
    "http://cdn.example%40127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@cdn.example/",
    "http://127.0.0.1:{port}?@cdn.example/",
    "http://127.0.0.1:{port}\\@cdn.example/",
    "http://cdn.example\\@127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}\\",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:////127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1: {port}/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:99999/",
    "http://127。0。0。1:{port}/",
    "http://127｡0｡0｡1:{port}/",
    "http://１２７.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://ⓛocalhost:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://loc%61lhost:{port}/",
    "http://127.0.0.1%00.cdn.example:{port}/",
    "http://127.0.0.1\x00.cdn.example:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: metadata\r\n\r\n",
    "http://cdn.example\r\n@127.0.0.1:{port}/",
    "http://127.0.0.1%0d%0aX-Injected:{port}/",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1:{port}/\ud800",
]
OTHER_SCHEMES = [
    "file:///etc/passwd",
    "file://127.0.0.1:{port}/etc/passwd",
    "ftp://127.0.0.1:{port}/a.jpg",
    "gopher://127.0.0.1:{port}/_GET%20/",
    "dict://127.0.0.1:{port}/stat",
    "ws://127.0.0.1:{port}/",
    "unix:/var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/containers/json",
    "data:image/png;base64,iVBORw0KGgo=",
    "jar:http://127.0.0.1:{port}!/a.jpg",
    "javascript:fetch('http://127.0.0.1:{port}/')",
]
PRIVATE_AND_METADATA = [
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[::ffff:169.254.169.254]/latest/api/token",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://169.254.170.2/v2/credentials/",
    "http://0xa9fea9fe/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://metadata/computeMetadata/v1/",
    "http://instance-data/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/opc/v2/instance/",
    "http://168.63.129.16/metadata/instance",
    "http://10.0.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://kubernetes.default.svc/api",
    "http://127.0.0.1.nip.example/",
]
PUBLIC_ON_OTHER_PORTS = [
    "http://157.240.22.63:22/",
    "http://157.240.22.63:25/",
    "https://157.240.22.63:6379/",
    "http://[2a03:2880:f21c:e5:face:b00c:0:4420]:8080/",
]
HOSTILE = [
    *SPELLINGS_OF_LOOPBACK,
    *IPV6,
    *CONFUSED_PARSERS,
    *OTHER_SCHEMES,
    *PRIVATE_AND_METADATA,
    *PUBLIC_ON_OTHER_PORTS,
]


@pytest.fixture(autouse=True)
def name_server(names: Names) -> Names:
    for name in ("metadata.google.internal", "metadata", "instance-data"):
        names.lead(name, "169.254.169.254")
    names.lead("kubernetes.default.svc", "10.96.0.1")
    names.lead("127.0.0.1.nip.example", "127.0.0.1")
    names.lead("cdn.example", "127.0.0.2")
    return names


async def _download(url: str, allowed: tuple[Network, ...] = ()) -> Download | ImageFailure:
    try:
        async with Downloader(allowed_networks=allowed, limits=QUICK) as downloader:
            return await downloader.download(url)
    except ImageFailure as failure:
        return failure


def _failed(url: str, allowed: tuple[Network, ...] = ()) -> ImageFailure:
    failure = asyncio.run(_download(url, allowed))
    assert isinstance(failure, ImageFailure)
    return failure


@pytest.fixture(scope="module")
def everywhere() -> Iterator[Witnesses]:
    with witnesses("127.0.0.1", *FORBIDDEN_HOSTS) as listeners:
        yield listeners


# -- URLs --


@pytest.mark.parametrize("template", HOSTILE, ids=ascii)
def test_a_hostile_url_reaches_nothing(template: str, everywhere: Witnesses) -> None:
    with recorded_dials() as dials:
        failure = _failed(template.replace("{port}", str(everywhere.port)))
    assert failure.kind in NO_SUCH_HOST
    assert dials == []
    assert everywhere.connections() == 0


def test_listeners_and_record_tell_of_every_address_that_is_reached(everywhere: Witnesses) -> None:
    """Else the silence would prove nothing."""
    for host, port in everywhere.addresses:
        with recorded_dials() as dials:
            asyncio.run(_download(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/", EVERYTHING))
        assert dials == [(host, port)]
        assert everywhere.connections() == 1


def test_a_spelling_of_loopback_would_reach_a_listener_if_it_were_allowed(everywhere: Witnesses) -> None:
    for host in ("localhost", "0x7f.1", "[::ffff:127.0.0.1]"):
        asyncio.run(_download(f"http://{host}:{everywhere.port}/", EVERYTHING))
        assert everywhere.connections() == 1


# -- redirects --


def _redirect(location: str, status: int = 302) -> bytes:
    head = f"HTTP/1.1 {status} Found\r\nContent-Length: 0\r\nLocation: "
    return head.encode() + location.encode("utf-8", "surrogatepass") + b"\r\n\r\n"


# The origin is on 127.0.0.1, so they lead next to it.
REDIRECTS = [
    url.replace("127.0.0.1", "127.0.0.2").replace("7F00:0001", "7F00:0002")
    for url in HOSTILE
    if not set("\r\n\x00") & set(url)
]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Witnesses]:
    with witnesses(*FORBIDDEN_HOSTS) as listeners:
        yield listeners


def _follow(location: str, status: int = 302) -> tuple[Download | ImageFailure, Origin, Sequence[tuple[str, int]]]:
    async def scenario() -> tuple[Download | ImageFailure, Origin, Sequence[tuple[str, int]]]:
        async with origin(always(_redirect(location, status))) as log:
            with recorded_dials() as dials:
                found = await _download(log.base, ONLY_THE_ORIGIN)
            return found, log, dials

    return asyncio.run(scenario())


@pytest.mark.parametrize("template", REDIRECTS, ids=ascii)
def test_a_redirect_leads_no_further_than_a_url(template: str, elsewhere: Witnesses, names: Names) -> None:
    names.lead("localhost", "127.0.0.2", "::1")
    names.lead("127.0.0.2.nip.example", "127.0.0.2")
    found, log, dials = _follow(template.replace("{port}", str(elsewhere.port)))
    assert isinstance(found, ImageFailure)
    # Some are relative to the origin, and lead back to it; the header's end cuts off others.
    assert found.kind in {*NO_SUCH_HOST, FailureKind.SOURCE_ERROR, FailureKind.TOO_MANY_REDIRECTS}
    assert {host for host, _ in dials} == {"127.0.0.1"}
    assert log.requests
    assert elsewhere.connections() == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect_to_a_private_address_is_refused(status: int, elsewhere: Witnesses) -> None:
    found, log, dials = _follow(f"http://127.0.0.2:{elsewhere.port}/", status)
    assert isinstance(found, ImageFailure)
    assert found.kind is FailureKind.BLOCKED_ADDRESS
    assert dials == [("127.0.0.1", log.port)]
    assert elsewhere.connections() == 0


def test_a_chain_by_way_of_allowed_hosts_ends_before_a_private_one(elsewhere: Witnesses) -> None:
    async def scenario() -> Download | ImageFailure:
        async with (
            origin(always(_redirect(f"http://127.0.0.2:{elsewhere.port}/"))) as last,
            origin(always(_redirect(f"{last.base}/"))) as middle,
            origin(always(_redirect(f"{middle.base}/"))) as first,
        ):
            found = await _download(first.base, ONLY_THE_ORIGIN)
            assert (first.connections, middle.connections, last.connections) == (1, 1, 1)
            return found

    found = asyncio.run(scenario())
    assert isinstance(found, ImageFailure)
    assert found.kind is FailureKind.BLOCKED_ADDRESS
    assert elsewhere.connections() == 0


# -- name servers that lie --


def _downloads(name: str, times: int) -> tuple[list[Download | ImageFailure], Origin, Sequence[tuple[str, int]]]:
    """So many downloads by name, each by a client that has looked up nothing yet."""

    async def scenario() -> tuple[list[Download | ImageFailure], Origin, Sequence[tuple[str, int]]]:
        async with origin(always(response())) as log:
            with recorded_dials() as dials:
                found = [await _download(f"http://{name}:{log.port}/a.jpg", ONLY_THE_ORIGIN) for _ in range(times)]
            return found, log, dials

    return asyncio.run(scenario())


def test_a_name_that_is_rebound_between_look_ups_is_dialled_only_where_it_may_be(names: Names) -> None:
    names.alternate("rebound.example", ["127.0.0.1"], ["127.0.0.2"], ["::1"], ["169.254.169.254"])
    found, _, dials = _downloads("rebound.example", 8)
    assert [isinstance(each, Download) for each in found] == [True, False, False, False] * 2
    assert {host for host, _ in dials} == {"127.0.0.1"}


def test_an_address_is_looked_up_once_and_dialled_as_it_was_checked(names: Names) -> None:
    names.alternate("rebound.example", ["127.0.0.1"], ["127.0.0.2"])
    [found], log, dials = _downloads("rebound.example", 1)
    assert isinstance(found, Download)
    assert names.asked.count("rebound.example") == 1
    assert dials == [("127.0.0.1", log.port)]


def test_of_several_addresses_only_allowed_ones_are_dialled(names: Names) -> None:
    names.lead("mixed.example", "127.0.0.2", "::1", "10.0.0.1", "127.0.0.1", "169.254.169.254")
    [found], log, dials = _downloads("mixed.example", 1)
    assert isinstance(found, Download)
    assert dials == [("127.0.0.1", log.port)]


def test_an_allowed_address_that_does_not_answer_is_no_way_to_a_private_one(names: Names, elsewhere: Witnesses) -> None:
    names.lead("mixed.example", "127.0.0.1", "127.0.0.2", "::1")
    with recorded_dials() as dials:
        failure = _failed(f"http://mixed.example:{elsewhere.port}/", ONLY_THE_ORIGIN)
    assert failure.kind in NO_SUCH_HOST
    assert {host for host, _ in dials} == {"127.0.0.1"}
    assert elsewhere.connections() == 0


def test_a_redirect_to_the_same_name_is_no_second_chance(names: Names, elsewhere: Witnesses) -> None:
    names.alternate("rebound.example", ["127.0.0.1"], ["127.0.0.2"])

    async def scenario() -> Download | ImageFailure:
        async with origin(always(_redirect(f"http://REBOUND.example.:{elsewhere.port}/"))) as log:
            return await _download(f"http://rebound.example:{log.port}/", ONLY_THE_ORIGIN)

    found = asyncio.run(scenario())
    assert isinstance(found, ImageFailure)
    assert elsewhere.connections() == 0


ADDRESSES = st.sampled_from(["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "::ffff:127.1.2.3", "0.0.0.0"]) | (
    st.ip_addresses().map(str)
)


@hypothesis_settings(max_examples=30, deadline=None)
@given(answers=st.lists(st.lists(ADDRESSES, min_size=1, max_size=4), min_size=1, max_size=3), data=st.data())
def test_whatever_a_name_server_answers_only_allowed_addresses_are_dialled(
    answers: list[list[str]], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        names = Names(socket.getaddrinfo)
        patch.setattr(socket, "getaddrinfo", names)
        names.alternate("any.example", *answers)
        _, _, dials = _downloads("any.example", len(answers))
    for host, _ in dials:
        address = ip_address(host)
        plain = (None if isinstance(address, IPv4Address) else address.ipv4_mapped) or address
        assert plain == IPv4Address("127.0.0.1")


# -- a whole run --


@contextmanager
def _redirecting_origin() -> Iterator[str]:
    """A host on 127.0.0.1 that redirects to what its path says in percent-encoding, and else sends a photograph."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            location = unquote(self.path.removeprefix("/to/")) if self.path.startswith("/to/") else None
            self.send_response(302 if location else 200)
            self.send_header("Content-Length", "0" if location else str(len(PHOTOGRAPH)))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            if not location:
                self.wfile.write(PHOTOGRAPH)

        def log_request(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _add_profiles(database: str, urls: Mapping[str, str]) -> None:
    engine = sa.create_engine(database)
    create_tables(engine)
    with engine.begin() as connection:
        rows = [
            {"id": uuid.uuid4(), "username": name, "profile_pic_url": url, "updated_at": sa.func.now()}
            for name, url in urls.items()
        ]
        for row in rows:
            connection.execute(profiles_table.insert().values(row))
    engine.dispose()


RUN_URLS: Mapping[str, Callable[[str, int], str]] = {
    "loopback": lambda base, port: f"http://127.0.0.2:{port}/a.jpg",
    "hex": lambda base, port: f"http://0x7f000002:{port}/a.jpg",
    "ipv6": lambda base, port: f"http://[::1]:{port}/a.jpg",
    "mapped": lambda base, port: f"http://[::ffff:127.0.0.2]:{port}/a.jpg",
    "metadata": lambda base, port: "http://169.254.169.254/latest/meta-data/",
    "name": lambda base, port: f"http://cdn.example:{port}/a.jpg",
    "instagram's name": lambda base, port: f"http://scontent.cdninstagram.com:{port}/v/t51.2885-15/1_2_3_n.jpg",
    "redirect": lambda base, port: f"{base}/to/http%3A%2F%2F127.0.0.2%3A{port}%2F",
    "redirect to a file": lambda base, port: f"{base}/to/file%3A%2F%2F%2Fetc%2Fpasswd",
    "redirect to a name": lambda base, port: f"{base}/to/http%3A%2F%2Fcdn.example%3A{port}%2F",
}


def test_a_run_reaches_nothing_that_hostile_rows_lead_to(
    settings: Settings, catalog: sa.Engine, empty_database: str, names: Names, elsewhere: Witnesses
) -> None:
    names.alternate("scontent.cdninstagram.com", ["127.0.0.2"], ["::1"])
    narrow = settings.model_copy(update={"download_allowed_networks": ONLY_THE_ORIGIN})
    with _redirecting_origin() as base:
        urls = {name: url(base, elsewhere.port) for name, url in RUN_URLS.items()}
        _add_profiles(empty_database, {**urls, "good": f"{base}/good.jpg"})
        with recorded_dials() as dials:
            tally = run(narrow)
    assert {host for host, _ in dials} == {"127.0.0.1"}
    assert elsewhere.connections() == 0
    found = {row["source_url"]: row for row in images(catalog)}
    assert {found[url]["failure_kind"] for url in urls.values()} == {"blocked_address"}
    assert "completed" not in {found[url]["processing_status"] for url in urls.values()}
    assert found[f"{base}/good.jpg"]["processing_status"] == "completed"
    assert tally.images == len(urls) + 1
    assert_nothing_in_hand(catalog)
