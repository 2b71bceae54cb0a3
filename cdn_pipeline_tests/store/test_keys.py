import hashlib
import re
import uuid

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.store.keys import (
    MAX_KEY_BYTES,
    original_key,
    path_of,
    public_url,
    rendition_key,
    rendition_named,
    renditions_prefix,
    sha256_of,
    tombstone_key,
)

OWNER = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
SHA256 = "0123456789abcdef" * 4

components = st.from_regex(r"[A-Za-z0-9_-]{1,100}", fullmatch=True)
hashes = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())


def test_a_rendition_key_is_what_the_contract_says() -> None:
    key = rendition_key(INSTAGRAM.key_prefix, OWNER, "avatar", "256", SHA256, "webp")
    assert key == f"th/ig/{OWNER}/avatar/256/0123456789abcdef.webp"
    assert path_of(key) == f"/th/ig/{OWNER}/avatar/256/0123456789abcdef.webp"


@given(owner=components, media=components, size=components, sha256=hashes)
def test_a_rendition_key_can_be_read_again(owner: str, media: str, size: str, sha256: str) -> None:
    name = rendition_named("th/ig", rendition_key("th/ig", owner, media, size, sha256, "webp"))
    assert name is not None
    assert (name.owner_id, name.media_id, name.size, name.extension) == (owner, media, size, "webp")
    assert sha256.startswith(name.hash_digits)


@pytest.mark.parametrize(
    "key",
    ["th/igx/o/m/256/0123456789abcdef.webp", "th/ig/o/m/256/0123.webp", "th/ig/o/m/0123456789abcdef.webp", "th/ig/"],
)
def test_another_key_is_no_renditions(key: str) -> None:
    assert rendition_named("th/ig", key) is None


def test_a_prefix_is_of_one_owner_or_one_image() -> None:
    assert renditions_prefix(INSTAGRAM.key_prefix, OWNER) == f"th/ig/{OWNER}"
    assert renditions_prefix(INSTAGRAM.key_prefix, OWNER, "avatar") == f"th/ig/{OWNER}/avatar"


@pytest.mark.parametrize(("owner_id", "media_id"), [("", None), ("..", None), ("a/b", None), (OWNER, ""), (OWNER, "*")])
def test_a_prefix_that_could_mean_others_is_refused(owner_id: str, media_id: str | None) -> None:
    with pytest.raises(ValueError, match="key component"):
        renditions_prefix(INSTAGRAM.key_prefix, owner_id, media_id)


def test_a_tombstone_has_a_key_of_its_own() -> None:
    tombstone_id = uuid.UUID(OWNER)
    assert tombstone_key(tombstone_id) == f"tombstones/{OWNER}.json"


@pytest.mark.parametrize("base", ["https://cdn.example.com", "https://cdn.example.com/", "http://127.0.0.1:8000"])
def test_a_public_url_has_one_slash_between_base_and_path(base: str) -> None:
    assert public_url(base, "th/ig/a.webp") == f"{base.rstrip('/')}/th/ig/a.webp"


@given(components, components, components, hashes)
def test_a_rendition_key_keeps_its_parts_apart(owner_id: str, media_id: str, size: str, sha256: str) -> None:
    key = rendition_key("th/ig", owner_id, media_id, size, sha256, "webp")
    assert key.split("/") == ["th", "ig", owner_id, media_id, size, f"{sha256[:16]}.webp"]
    assert len(key.encode()) <= MAX_KEY_BYTES
    assert re.fullmatch(r"(/[A-Za-z0-9_-]+)+\.webp", path_of(key))


@given(st.tuples(*[components] * 3, hashes), st.tuples(*[components] * 3, hashes))
def test_different_renditions_have_different_keys(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    assume((*one[:3], one[3][:16]) != (*other[:3], other[3][:16]))
    assert rendition_key("th/ig", *one, "webp") != rendition_key("th/ig", *other, "webp")


@given(st.text(max_size=120), st.integers(0, 3))
def test_a_part_that_could_leave_its_place_is_refused(part: str, position: int) -> None:
    assume(not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", part))
    parts = ["th", OWNER, "avatar", "256"]
    parts[position] = part
    if position == 0 and all(re.fullmatch(r"[A-Za-z0-9_-]{1,100}", segment) for segment in part.split("/")):
        return
    with pytest.raises(ValueError, match="key component"):
        rendition_key(parts[0], parts[1], parts[2], parts[3], SHA256, "webp")


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "a.b", "jane.doe", "avatar\n", "ü", "a b", "x" * 101])
def test_dots_slashes_and_blanks_are_refused(part: str) -> None:
    with pytest.raises(ValueError, match="key component"):
        rendition_key("th/ig", OWNER, part, "256", SHA256, "webp")


@pytest.mark.parametrize("prefix", ["", "/th", "th/", "th//ig", "../th"])
def test_a_prefix_has_no_empty_and_no_dotted_segments(prefix: str) -> None:
    with pytest.raises(ValueError, match="key component"):
        rendition_key(prefix, OWNER, "avatar", "256", SHA256, "webp")


@pytest.mark.parametrize("sha256", ["", SHA256[:16], SHA256.upper(), SHA256 + "0", "g" * 64])
def test_only_a_whole_lower_case_sha256_names_an_object(sha256: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        original_key(sha256)
    with pytest.raises(ValueError, match="SHA-256"):
        rendition_key("th/ig", OWNER, "avatar", "256", sha256, "webp")


def test_a_key_longer_than_the_store_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="1024 bytes"):
        rendition_key("/".join(["x" * 100] * 8), "o" * 100, "m" * 100, "256", SHA256, "webp")


@given(hashes)
def test_an_original_is_named_by_its_content_alone(sha256: str) -> None:
    assert original_key(sha256) == f"originals/{sha256[:2]}/{sha256[2:4]}/{sha256}"


@pytest.mark.parametrize("key", ["", "/th/ig/a.webp"])
def test_a_path_is_not_made_of_a_path(key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        path_of(key)


@given(hashes)
def test_an_originals_key_gives_its_hash_back(sha256: str) -> None:
    assert sha256_of(original_key(sha256)) == sha256


@pytest.mark.parametrize(
    "key", [SHA256, f"originals/{SHA256}", f"originals/ab/cd/{SHA256}", "originals/01/23/notes", ""]
)
def test_what_is_no_originals_key_has_no_hash(key: str) -> None:
    assert sha256_of(key) is None
