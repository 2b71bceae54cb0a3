"""The demo's proof can fail: every lie about a published or a dead URL is a complaint."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import sqlalchemy as sa

from cdn_pipeline.demo.proof import (
    PublishedUrl,
    catalog_state,
    verify_published_urls_serve,
    verify_source_urls_are_dead,
)
from cdn_pipeline.store.objects import CACHE_CONTROL
from cdn_pipeline_tests.queue.catalogs import publish, reference, see, source_url

BODY = b"a rendition"
HASH = hashlib.sha256(BODY).hexdigest()


class _Server(BaseHTTPRequestHandler):
    """Answers by path: `/good`, `/short-cache`, `/jpeg`, `/other-bytes`; anything else is 403."""

    def do_GET(self) -> None:
        kind = self.path.rpartition("/")[2]
        known = kind in ("good", "short-cache", "jpeg", "other-bytes")
        self.send_response(200 if known else 403)
        self.send_header("Content-Type", "image/jpeg" if kind == "jpeg" else "image/webp")
        self.send_header("Cache-Control", "max-age=60" if kind == "short-cache" else CACHE_CONTROL)
        self.end_headers()
        self.wfile.write(b"something else" if kind == "other-bytes" else BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_published_urls_that_serve_their_bytes_hold(server: str) -> None:
    verified = verify_published_urls_serve([PublishedUrl("https://cdn.example/a/good", HASH)], server)
    assert verified.holds
    assert (verified.good, verified.asked) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("short-cache", "cache control is max-age=60"),
        ("jpeg", "content type is image/jpeg"),
        ("other-bytes", "SHA-256 is"),
        ("gone", "status is 403"),
    ],
)
def test_each_lie_about_a_published_url_is_told(server: str, kind: str, words: str) -> None:
    verified = verify_published_urls_serve([PublishedUrl(f"https://cdn.example/a/{kind}", HASH)], server)
    assert not verified.holds
    assert words in verified.complaints[0]


def test_a_server_that_is_down_does_not_hold() -> None:
    verified = verify_published_urls_serve([PublishedUrl("https://cdn.example/good", HASH)], "http://127.0.0.1:9")
    assert not verified.holds


def test_nothing_asked_proves_nothing(server: str) -> None:
    assert not verify_published_urls_serve([], server).holds


def test_a_source_url_that_still_lives_is_told(server: str) -> None:
    verified = verify_source_urls_are_dead([f"{server}/dead", f"{server}/good"])
    assert (verified.good, verified.asked) == (1, 2)
    assert "still answers 200" in verified.complaints[0]


def test_the_state_counts_published_waiting_and_lost_images(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        see(connection, reference(image="1"))
        publish(connection)
        see(connection, reference(image="2"), reference(source_url(lives=timedelta(hours=-9)), image="arrived dead"))
    state = catalog_state(catalog)
    assert (state.images, state.published, state.waiting, state.lost) == (3, 1, 2, 0)

    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 h'"))
    assert catalog_state(catalog).lost == 1
