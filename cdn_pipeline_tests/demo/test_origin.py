import random
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from cdn_pipeline.demo.faults import NO_FAULTS, Fault, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.demo.pictures import AVATARS_FOLDER, POSTS_FOLDER, Picture
from cdn_pipeline_tests.world import origin, picture_folder  # noqa: F401

AVATAR = Picture.invent(AVATARS_FOLDER, random.Random(1))


def _url(origin: Origin, picture: Picture = AVATAR, stp: str = "dst-jpg_s150x150") -> str:
    return origin.signer.url(picture, stp, origin.now() + timedelta(days=4), random.Random(1))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stp", ["dst-jpg_e35_p1080x1080", "dst-jpg_e35"])
def test_a_post_is_served_as_a_jpeg_of_the_promised_size(origin: Origin, seed: int, stp: str) -> None:
    picture = Picture.invent(POSTS_FOLDER, random.Random(seed))
    answer = httpx.get(_url(origin, picture, stp))
    width, height = picture.size
    scale = min(1, 1080 / min(width, height)) if "p1080x1080" in stp else 1
    with Image.open(BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("JPEG", (round(width * scale), round(height * scale)))


def test_a_thumbnail_is_cropped_to_the_middle_square(origin: Origin) -> None:
    picture = next(p for p in map(_post, range(99)) if p.size == (1080, 1350))
    answer = httpx.get(_url(origin, picture, f"{picture.square_crop}dst-jpg_e35_s640x640_sh0.08"))
    assert Image.open(BytesIO(answer.content)).size == (640, 640)


def test_the_headers_are_instagrams(origin: Origin) -> None:
    answer = httpx.get(_url(origin))
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert answer.headers["Cache-Control"] == "max-age=1209600, no-transform"
    assert answer.headers["Content-Digest"] == f"adler32={zlib.adler32(answer.content)}"
    assert answer.headers["Last-Modified"].endswith("GMT")
    assert "ETag" not in answer.headers


def test_a_second_request_and_another_origin_serve_the_same_bytes(origin: Origin, tmp_path: Path) -> None:
    first, second = httpx.get(_url(origin)), httpx.get(_url(origin))
    with running_origin(tmp_path, misbehaviour=Misbehaviour(NO_FAULTS)) as other:
        third = httpx.get(_url(other))
    assert first.content == second.content == third.content


def test_urls_expire_by_the_origins_clock(origin: Origin) -> None:
    url = _url(origin)
    assert httpx.get(url).status_code == HTTPStatus.OK
    origin.advance_clock(timedelta(days=5))
    answer = httpx.get(url)
    assert (answer.status_code, answer.text) == (HTTPStatus.FORBIDDEN, "URL signature expired")
    assert httpx.get(origin.signer.sign_again(url, origin.now() + timedelta(days=4))).status_code == HTTPStatus.OK


@pytest.mark.parametrize(
    ("pattern", "replacement", "body"),
    [
        (r"oh=00_Af.", "oh=00_Af!", "Bad URL hash"),
        (r"&oh=[^&]*", "", "Bad URL hash"),
        (r"&oe=[^&]*", "", "Bad URL timestamp"),
        (r"&", r"\\u0026", "Bad URL timestamp"),
        (r"_nc_ht=[^&]*", "_nc_ht=example.com", "URL signature mismatch"),
        (r"s150x150", "s320x320", "URL signature mismatch"),
    ],
)
def test_each_spoiled_url_is_refused_in_instagrams_words(
    origin: Origin, pattern: str, replacement: str, body: str
) -> None:
    answer = httpx.get(re.sub(pattern, replacement, _url(origin)))
    assert (answer.status_code, answer.text) == (HTTPStatus.FORBIDDEN, body)
    assert answer.headers["Content-Type"] == "text/plain"


def test_a_deleted_picture_is_404_under_every_url(origin: Origin) -> None:
    origin.delete_picture(AVATAR.path)
    later = origin.signer.sign_again(_url(origin), origin.now() + timedelta(days=9))
    assert [httpx.get(url).status_code for url in (_url(origin), later)] == [HTTPStatus.NOT_FOUND] * 2


def test_rate_limiting_says_when_to_come_back_and_heals(origin: Origin) -> None:
    origin.misbehaviour.order(AVATAR.path, Fault.RATE_LIMITED)
    answer = httpx.get(_url(origin))
    assert (answer.status_code, answer.headers["Retry-After"]) == (HTTPStatus.TOO_MANY_REQUESTS, "2")
    assert httpx.get(_url(origin)).status_code == HTTPStatus.OK


def test_a_server_error_heals(origin: Origin) -> None:
    origin.misbehaviour.order(AVATAR.path, Fault.SERVER_ERROR)
    assert [httpx.get(_url(origin)).status_code for _ in range(2)] == [500, 200]


def test_a_truncated_answer_promises_more_than_it_brings_and_heals(origin: Origin) -> None:
    origin.misbehaviour.order(AVATAR.path, Fault.TRUNCATED)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(_url(origin))
    assert httpx.get(_url(origin)).status_code == HTTPStatus.OK


def test_a_slow_answer_sends_headers_first_and_its_body_late(origin: Origin) -> None:
    origin.misbehaviour.order(AVATAR.path, Fault.SLOW, attempts=2)
    with httpx.stream("GET", _url(origin), timeout=0.1) as answer:
        assert answer.status_code == HTTPStatus.OK
        with pytest.raises(httpx.ReadTimeout):
            answer.read()
    assert Image.open(BytesIO(httpx.get(_url(origin)).content)).size == (150, 150)


def test_a_login_page_comes_with_200_and_heals(origin: Origin) -> None:
    origin.misbehaviour.order(AVATAR.path, Fault.HTML_PAGE)
    page = httpx.get(_url(origin))
    assert (page.status_code, page.headers["Content-Type"]) == (HTTPStatus.OK, "text/html; charset=utf-8")
    assert "Login" in page.text
    assert httpx.get(_url(origin)).headers["Content-Type"] == "image/jpeg"


def test_a_stale_url_is_404_until_it_is_signed_again(origin: Origin) -> None:
    url = _url(origin)
    origin.misbehaviour.order(AVATAR.path, Fault.STALE_URL)
    assert [httpx.get(url).status_code for _ in range(2)] == [404, 404]
    assert httpx.get(origin.signer.sign_again(url, origin.now())).status_code == HTTPStatus.OK


@pytest.mark.parametrize("fault", [Fault.SLOW, Fault.TRUNCATED])
def test_a_head_request_gets_the_headers_whatever_goes_wrong_with_the_body(origin: Origin, fault: Fault) -> None:
    length = httpx.get(_url(origin)).headers["Content-Length"]
    origin.misbehaviour.order(AVATAR.path, fault)
    answer = httpx.head(_url(origin))
    assert (answer.status_code, answer.headers["Content-Length"]) == (HTTPStatus.OK, length)


def test_an_unchanged_picture_is_not_sent_again(origin: Origin) -> None:
    seen = httpx.get(_url(origin)).headers["Last-Modified"]
    again = httpx.get(_url(origin), headers={"If-Modified-Since": seen})
    assert (again.status_code, again.content) == (HTTPStatus.NOT_MODIFIED, b"")
    older = httpx.get(_url(origin), headers={"If-Modified-Since": "Mon, 01 Jan 2018 00:00:00 GMT"})
    assert older.status_code == HTTPStatus.OK


def test_etags_are_an_option(picture_folder: Path) -> None:
    with running_origin(picture_folder, misbehaviour=Misbehaviour(NO_FAULTS), etag=True) as origin:
        tag = httpx.get(_url(origin)).headers["ETag"]
        assert httpx.get(_url(origin), headers={"If-None-Match": tag}).status_code == HTTPStatus.NOT_MODIFIED
        assert httpx.get(_url(origin), headers={"If-None-Match": '"other"'}).status_code == HTTPStatus.OK


def test_other_methods_are_refused_with_a_page(origin: Origin) -> None:
    answer = httpx.post(_url(origin))
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "text/html; charset=utf-8")


def test_every_request_is_counted_once_by_path_and_outcome(origin: Origin) -> None:
    other = _post(7)
    origin.misbehaviour.order(other.path, Fault.SERVER_ERROR)
    for url in (_url(origin), _url(origin), _url(origin, other), _url(origin, other)):
        httpx.get(url)
    httpx.get(_url(origin).replace("s150x150", "s640x640"))
    assert origin.requests.total == 5
    assert origin.requests.by_outcome() == {"ok": 3, "server_error": 1, "mismatch": 1}
    assert origin.requests.by_path() == {
        AVATAR.path: {"ok": 2, "mismatch": 1},
        other.path: {"server_error": 1, "ok": 1},
    }
    origin.requests.reset()
    assert origin.requests.total == 0


def test_the_controls_answer_over_http(origin: Origin) -> None:
    admin = f"{origin.base_url}/_admin"
    httpx.get(_url(origin))
    assert httpx.get(f"{admin}/requests").json() == {
        "total": 1,
        "outcomes": {"ok": 1},
        "paths": {AVATAR.path: {"ok": 1}},
    }
    assert httpx.delete(f"{admin}/requests").status_code == HTTPStatus.NO_CONTENT
    order = {"path": AVATAR.path, "fault": "server_error", "attempts": 1}
    assert httpx.post(f"{admin}/misbehave", json=order).status_code == HTTPStatus.NO_CONTENT
    assert httpx.get(_url(origin)).status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    url = _url(origin)
    assert httpx.post(f"{admin}/clock", json={"advance_seconds": 432000}).json()["offset_seconds"] == 432000
    assert httpx.get(url).text == "URL signature expired"
    assert origin.requests.by_outcome() == {"server_error": 1, "expired": 1}


@pytest.mark.parametrize(
    ("control", "wrong"),
    [("clock", {}), ("clock", {"advance_seconds": "x"}), ("clock", []), ("misbehave", {"path": "/", "fault": "x"})],
)
def test_a_wrong_order_is_refused_with_the_right_form(origin: Origin, control: str, wrong: object) -> None:
    answer = httpx.post(f"{origin.base_url}/_admin/{control}", json=wrong)
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.text.startswith("wanted: {")


@pytest.fixture
def origin_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    options = ["--port", "0", "--state-dir", str(tmp_path), "--secret", "s", "--no-faults"]
    command = [sys.executable, "-m", "cdn_pipeline.demo.origin", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_as_a_process_it_says_when_it_is_ready_serves_and_stops_cleanly(
    origin_process: subprocess.Popen[str], stop: signal.Signals
) -> None:
    assert origin_process.stderr is not None
    ready = re.fullmatch(r"demo origin ready at (http://127\.0\.0\.1:\d+)\n", origin_process.stderr.readline())
    assert ready is not None
    assert httpx.get(f"{ready[1]}/_admin/clock").json()["offset_seconds"] == 0
    origin_process.send_signal(stop)
    assert origin_process.wait(10) == 0
    assert origin_process.stderr.read() == ""


def _post(seed: int) -> Picture:
    return Picture.invent(POSTS_FOLDER, random.Random(seed))
