import random
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.demo.pictures import AVATARS_FOLDER, POSTS_FOLDER, Picture
from cdn_pipeline.demo.signing import HOST_CLAIMS, Rejection, Signer, check, expiry_of
from cdn_pipeline.sources import instagram

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EXPIRY = NOW + timedelta(days=4)
SIGNER = Signer("http://127.0.0.1:8100", "secret")
PICTURE = Picture.invent(POSTS_FOLDER, random.Random(1))


def _url(picture: Picture = PICTURE, stp: str = "dst-jpg_e35_p1080x1080", media_pk: str | None = None) -> str:
    return SIGNER.url(picture, stp, EXPIRY, random.Random(1), media_pk=media_pk)


def _verdict(url: str, now: datetime = NOW, secret: str = "secret") -> Rejection | None:
    parts = urlsplit(url)
    return check(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), secret, now)


def _changed(url: str, name: str, value: str | None) -> str:
    parts = urlsplit(url)
    query = {key: old for key, old in parse_qsl(parts.query) if key != name}
    return parts._replace(query=urlencode(query | ({} if value is None else {name: value}))).geturl()


def test_a_signed_url_is_good_until_its_expiry() -> None:
    assert _verdict(_url(), EXPIRY - timedelta(seconds=1)) is None
    assert _verdict(_url(), EXPIRY) is Rejection.EXPIRED


@pytest.mark.parametrize("name", ["stp", "efg", "_nc_ht", "_nc_cat", "_nc_ohc", "edm", "ccb", "_nc_sid"])
def test_changing_any_parameter_breaks_the_signature(name: str) -> None:
    assert _verdict(_changed(_url(), name, "x")) is Rejection.MISMATCH
    assert _verdict(_changed(_url(), name, None)) is Rejection.MISMATCH


def test_a_later_expiry_cannot_be_claimed() -> None:
    later = f"{int(EXPIRY.timestamp()) + 86400:X}"
    assert _verdict(_changed(_url(), "oe", later), EXPIRY) is Rejection.MISMATCH


def test_another_picture_or_secret_breaks_the_signature() -> None:
    other = Picture.invent(POSTS_FOLDER, random.Random(2))
    assert _verdict(_url().replace(PICTURE.path, other.path)) is Rejection.MISMATCH
    assert _verdict(_url(), secret="another") is Rejection.MISMATCH


def test_a_url_without_expiry_has_a_bad_timestamp() -> None:
    assert _verdict(_changed(_url(), "oe", None)) is Rejection.BAD_TIMESTAMP
    assert _verdict(_changed(_url(), "oe", "soon")) is Rejection.BAD_TIMESTAMP


@pytest.mark.parametrize("escape", [r"\u0026", "&amp;"])
def test_an_escaped_url_has_a_bad_timestamp(escape: str) -> None:
    assert _verdict(_url().replace("&", escape)) is Rejection.BAD_TIMESTAMP


def test_a_url_without_signature_or_with_half_of_it_has_a_bad_hash() -> None:
    assert _verdict(_changed(_url(), "oh", None)) is Rejection.BAD_HASH
    assert _verdict(_changed(_url(), "oh", "00_Af12345")) is Rejection.BAD_HASH


@given(
    st.integers(0),
    st.sampled_from([POSTS_FOLDER, AVATARS_FOLDER]),
    st.one_of(st.none(), st.integers(10**17, 10**19 - 1).map(str)),
)
def test_the_pipeline_reads_identity_and_expiry_from_every_signed_url(seed: int, folder: str, pk: str | None) -> None:
    picture = Picture.invent(folder, random.Random(seed))
    read = instagram.parse(SIGNER.url(picture, "dst-jpg_s150x150", EXPIRY, random.Random(seed), media_pk=pk))
    assert read.identity == (f"pk:{pk}" if pk else f"file:{picture.file_name.split('.')[0]}")
    assert read.expires_at == EXPIRY


@given(st.integers(0), st.booleans())
def test_signing_again_keeps_the_picture_and_changes_claim_signature_and_expiry(seed: int, with_key: bool) -> None:
    picture = Picture.invent(POSTS_FOLDER, random.Random(seed))
    pk = "3662892554673991259" if with_key else None
    old = SIGNER.url(picture, "dst-jpg_e35", EXPIRY, random.Random(seed), media_pk=pk)
    new = SIGNER.sign_again(old, EXPIRY + timedelta(days=3))
    before, after = parse_qs(urlsplit(old).query), parse_qs(urlsplit(new).query)
    assert urlsplit(new).path == urlsplit(old).path
    assert all(before[name] != after[name] for name in ("_nc_ht", "_nc_ohc", "oh", "oe"))
    assert all(before.get(name) == after.get(name) for name in ("stp", "efg", "edm", "ccb", "ig_cache_key"))
    assert after["_nc_ht"][0] in HOST_CLAIMS
    assert instagram.parse(new).identity == instagram.parse(old).identity
    assert _verdict(new, EXPIRY + timedelta(days=2)) is None


def test_signing_again_always_gives_a_later_expiry() -> None:
    again = SIGNER.sign_again(_url(), NOW)
    assert expiry_of(again) == EXPIRY + timedelta(seconds=1)


@pytest.mark.parametrize("text", ["", "no picture", "https://example.com/a.jpg?oe=", _url().replace("&", r"\u0026")])
def test_signing_again_leaves_alone_what_is_no_signed_url(text: str) -> None:
    assert SIGNER.sign_again(text, EXPIRY) == text


def test_efg_tells_the_size_of_the_master() -> None:
    whole = instagram.parse(_url(stp="dst-jpg_e35"))
    assert whole.rank == instagram.UNCROPPED_RANK + max(PICTURE.size)
