"""Delivery of a folder store, over HTTP from the real server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cdn_pipeline.api.app import create_app
from cdn_pipeline.demo.serving import serving_asgi
from cdn_pipeline.settings import Settings

BODY = bytes(range(256)) * 4
PATH = "/th/ig/owner/avatar/256/0123456789abcdef.webp"


@contextmanager
def served(settings: Settings) -> Iterator[httpx.Client]:
    """The application behind its real server."""
    with serving_asgi(create_app(settings)) as base_url, httpx.Client(base_url=base_url, trust_env=False) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    objects = tmp_path / "objects"
    file = objects / PATH.lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    (tmp_path / "secret.webp").write_bytes(b"not public")
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]
        object_store_url=objects.as_uri(),
        originals_store_url=(tmp_path / "originals").as_uri(),
    )
    with served(settings) as client:
        yield client


def test_a_rendition_is_served_whole_and_for_ever(client: httpx.Client) -> None:
    response = client.get(PATH)
    assert response.status_code == 200
    assert response.content == BODY
    assert response.headers["content-type"] == "image/webp"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["access-control-allow-origin"] == "*"


def test_browsers_may_be_told_to_forget_earlier_than_the_cdn(tmp_path: Path) -> None:
    file = tmp_path / "objects" / PATH.lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]
        object_store_url=(tmp_path / "objects").as_uri(),
        originals_store_url=(tmp_path / "originals").as_uri(),
        browser_cache_days=7,
    )
    with served(settings) as client:
        header = client.get(PATH).headers["cache-control"]
    assert header == "public, max-age=604800, s-maxage=31536000, immutable"


def test_the_etag_saves_the_second_transfer(client: httpx.Client) -> None:
    etag = client.get(PATH).headers["etag"]
    response = client.get(PATH, headers={"If-None-Match": etag})
    assert response.status_code == 304
    assert response.content == b""


def test_the_etag_is_of_the_content_and_not_of_the_copy(client: httpx.Client, tmp_path: Path) -> None:
    etag = client.get(PATH).headers["etag"]
    (tmp_path / "objects" / PATH.lstrip("/")).touch()
    assert client.get(PATH).headers["etag"] == etag


def test_a_range_of_a_rendition_can_be_had(client: httpx.Client) -> None:
    response = client.get(PATH, headers={"Range": "bytes=10-19"})
    assert response.status_code == 206
    assert response.content == BODY[10:20]


def test_a_range_beyond_the_end_is_refused_with_the_size(client: httpx.Client) -> None:
    response = client.get(PATH, headers={"Range": f"bytes={len(BODY)}-"})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(BODY)}"


def test_a_range_of_a_picture_that_has_changed_since_is_the_whole_of_it(client: httpx.Client) -> None:
    etag = client.get(PATH).headers["etag"]
    part = client.get(PATH, headers={"Range": "bytes=0-9", "If-Range": etag})
    whole = client.get(PATH, headers={"Range": "bytes=0-9", "If-Range": '"of another picture"'})
    assert (part.status_code, part.content) == (206, BODY[:10])
    assert (whole.status_code, whole.content) == (200, BODY)


def test_a_head_has_the_headers_of_the_picture_without_its_bytes(client: httpx.Client) -> None:
    head, get = client.head(PATH), client.get(PATH)
    names = ("content-type", "content-length", "cache-control", "etag", "accept-ranges", "access-control-allow-origin")
    assert head.status_code == 200
    assert head.content == b""
    assert {name: head.headers[name] for name in names} == {name: get.headers[name] for name in names}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (PATH, {}, 200),
        (PATH, {"Range": "bytes=0-9"}, 206),
        (PATH, {"If-None-Match": '"0123456789abcdef"'}, 304),
        (PATH, {"Range": "bytes=5000-"}, 416),
        (PATH.replace("0123", "ffff"), {}, 404),
    ],
)
def test_pages_of_any_origin_may_read_every_answer(
    client: httpx.Client, path: str, headers: dict[str, str], status: int
) -> None:
    response = client.get(path, headers={"Origin": "https://page.example", **headers})
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["timing-allow-origin"] == "*"


def test_scripts_may_send_headers_of_their_own(client: httpx.Client) -> None:
    wish = {"Origin": "https://page.example", "Access-Control-Request-Method": "GET"}
    response = client.options(PATH, headers={**wish, "Access-Control-Request-Headers": "if-none-match"})
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["access-control-allow-headers"] == "*"
    assert "GET" in response.headers["access-control-allow-methods"]


def test_a_missing_rendition_is_a_404_that_caches_forget_soon(client: httpx.Client) -> None:
    response = client.get(PATH.replace("0123", "ffff"))
    assert response.status_code == 404
    assert response.headers["cache-control"] == "public, max-age=60"


@pytest.mark.parametrize(
    "path",
    [
        "/th/../../secret.webp",
        "/th/%2e%2e/%2e%2e/secret.webp",
        "/th/ig/..%2f..%2f..%2fsecret.webp",
        "/th//etc/passwd",
        "/th/ig/owner/avatar/256",
        "/th/ig/owner/avatar/256/0123456789abcdef.webp#1",
        "/th/ig/%00.webp",
        "/.meta/th/ig/owner/avatar/256/0123456789abcdef.webp.json",
    ],
)
def test_nothing_but_renditions_is_served(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code in (404, 200)
    assert response.status_code == 404 or response.content == BODY  # a fragment is not sent to a server


def test_only_reading_is_allowed(client: httpx.Client) -> None:
    assert client.put(PATH, content=b"x").status_code == 405


def test_renditions_behind_a_cdn_are_not_served_here() -> None:
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]
        object_store_url="s3://renditions",
        originals_store_url="s3://originals",
        r2_access_key_id="key",
        r2_secret_access_key="secret",  # type: ignore[arg-type]
        r2_endpoint_url="http://127.0.0.1:9",
    )
    with served(settings) as client:
        assert client.get(PATH).status_code == 404
        assert client.get("/livez").json() == {"status": "alive"}
