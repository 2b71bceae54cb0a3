"""Request paths as an attacker writes them, byte for byte: no client in between that tidies them up."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdn_pipeline.api.app import create_app
from cdn_pipeline.demo.serving import LOOPBACK, serving_asgi
from cdn_pipeline.settings import Settings

RENDITION = "/th/ig/owner/avatar/256/0123456789abcdef.webp"
PUBLIC, PRIVATE = b"a rendition", b"not public"

Ask = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Sends a GET with these bytes for its target; returns the whole answer."""
    folder = tmp_path_factory.mktemp("store")
    _write(folder / "objects" / RENDITION.lstrip("/"), PUBLIC)
    for name in (
        "secret.webp",
        "objects/secret.webp",
        "objects/.meta/th/a.webp",
        "objects/thx/a.webp",
        "originals/o.webp",
    ):
        _write(folder / name, PRIVATE)
    (folder / "objects/th/link.webp").symlink_to(folder / "secret.webp")
    (folder / "objects/th/folder").symlink_to(folder)
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]
        object_store_url=(folder / "objects").as_uri(),
        originals_store_url=(folder / "originals").as_uri(),
    )
    with serving_asgi(create_app(settings)) as base_url:
        port = urlsplit(base_url).port or 0
        yield lambda target: _get(port, target)


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _get(port: int, target: bytes) -> bytes:
    with socket.create_connection((LOOPBACK, port), timeout=10) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: cdn\r\nConnection: close\r\n\r\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def test_the_rendition_itself_is_served(ask: Ask) -> None:
    assert ask(RENDITION.encode()).endswith(PUBLIC)


TRAVERSALS = [
    "/th/../../secret.webp",
    "/th/../secret.webp",
    "/th/..%2fsecret.webp",
    "/th/%2e%2e/secret.webp",
    "/th/%2e%2e%2f%2e%2e%2fsecret.webp",
    "/th/%252e%252e/secret.webp",
    "/th/..%c0%afsecret.webp",
    "/th/..%5csecret.webp",
    "/th/..\\secret.webp",
    "/th/....//secret.webp",
    "/th/ig/../../secret.webp",
    "/th/../thx/a.webp",
    "/th/../.meta/th/a.webp",
    "/th/../../originals/o.webp",
    "/thx/a.webp",
    "/.meta/th/a.webp",
    "/th/link.webp",
    "/th/folder/secret.webp",
    "/th//etc/passwd.webp",
    "//th/../secret.webp",
    "/th/ig/owner/avatar/256/0123456789abcdef.webp%00.jpg",
    "/th/" + "a" * 5000 + ".webp",
    "/th/" + "a/" * 3000 + "b.webp",
    "/th/%ff%fe.webp",
    "/th/ig/owner/avatar/256/0123456789abcdef.webp/../../../../../../../secret.webp",
    "http://cdn/th/../secret.webp",
]


@pytest.mark.parametrize("target", TRAVERSALS)
def test_no_path_leads_out_of_the_renditions(ask: Ask, target: str) -> None:
    answer = ask(target.encode())
    assert PRIVATE not in answer
    assert answer.split(b" ")[1] in (b"400", b"404")


SEGMENTS = st.sampled_from(
    ["..", ".", "th", "secret.webp", "link.webp", "folder", "originals", "%2e%2e", "..%2f", "%00"]
)
PATHS = st.lists(SEGMENTS | st.text(min_size=1, max_size=6).map(quote), max_size=8).map("/".join)


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS)
@example(path="%ed%a0%80.webp")
def test_any_path_is_a_rendition_or_an_error_of_the_client(ask: Ask, path: str) -> None:
    answer = ask(f"/th/{path}".encode())
    assert PRIVATE not in answer
    assert answer.split(b" ")[1] in (b"400", b"404", b"307")


def test_a_header_that_asks_for_another_host_changes_nothing(ask: Ask) -> None:
    answer = ask(b"/th/a.webp HTTP/1.1\r\nX-Forwarded-Host: evil\r\nX-Original-URL: /secret.webp\r\nX-Ignored: ")
    assert b"evil" not in answer
    assert answer.split(b" ")[1] == b"404"
