"""Every shape of answer gives references or a reason; nothing else comes out, whatever JSON goes in."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.sources.decodo_payloads import (
    message_of,
    names_unknown_target,
    read_body,
    read_result,
    results_of,
    status_of,
    tasks_of,
)
from cdn_pipeline.sources.provider import NoProfile, ProvidedProfile, Refusal
from cdn_pipeline_tests.sources.decodo_service import url, user


def answer(content: Any, status: int = 200) -> ProvidedProfile | NoProfile:
    return read_result({"content": content, "status_code": status}, "nba")


def images(content: Any) -> dict[tuple[str, str], int]:
    """The pictures of a profile, with the number of their URLs."""
    found = answer(content)
    assert isinstance(found, ProvidedProfile), found
    return {(image.source_type, image.media_id): len(image.candidates) for image in found.images}


def refusal(content: Any, status: int = 200) -> Refusal:
    found = answer(content, status)
    assert isinstance(found, NoProfile), found
    return found.refusal


def page(found: Any) -> dict[str, Any]:
    return {"data": {"user": found}, "status": "ok"}


ALL = {("profile_avatar", "avatar"): 2, ("post_thumbnail", "11"): 2, ("post_thumbnail", "12"): 1}
WITH_CHILD = ALL | {("post_carousel", "122"): 1}


def test_a_profile_gives_its_avatar_its_posts_and_the_children_that_are_other_pictures() -> None:
    assert images(page(user())) == WITH_CHILD


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(page(user())),
        {"graphql": {"user": user()}},
        {"success": True, "data": {"success": True, "data": {"user": user()}}},
        {"user": user()},
    ],
    ids=["string of JSON", "graphql", "wrapped twice", "bare"],
)
def test_the_same_profile_comes_in_other_wrappings(content: Any) -> None:
    assert images(content) == WITH_CHILD


def test_lists_that_a_proxy_turned_into_objects_are_lists() -> None:
    timeline = user()["edge_owner_to_timeline_media"]
    edges = {str(place): edge for place, edge in enumerate(timeline["edges"])}
    assert images(page(user(edge_owner_to_timeline_media={"edges": edges}))) == WITH_CHILD
    assert images(page(user(edge_owner_to_timeline_media={"edges": {}}))) == {("profile_avatar", "avatar"): 2}


@pytest.mark.parametrize("name", ["shortcode_media", "xdt_shortcode_media"])
def test_a_post_gives_its_pictures_alone(name: str) -> None:
    media = user()["edge_owner_to_timeline_media"]["edges"][1]["node"] | {"owner": {"username": "nba"}}
    assert images({"data": {name: media}}) == {("post_thumbnail", "12"): 1, ("post_carousel", "122"): 1}


def test_a_missing_hd_avatar_and_urls_that_cannot_be_requested_are_left_out() -> None:
    nodes = [{"id": "11", "display_url": "javascript:alert(1)", "thumbnail_src": None}, {"id": None}, None, "node"]
    found = images(page(user(profile_pic_url_hd=None, edge_owner_to_timeline_media={"edges": nodes})))
    assert found == {("profile_avatar", "avatar"): 1}


@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (page(user(is_private=True)), 200, Refusal.PRIVATE),
        (page(None), 200, Refusal.EMPTY),
        ("", 200, Refusal.EMPTY),
        ("  \n", 200, Refusal.EMPTY),
        (None, 200, Refusal.EMPTY),
        (page(user(profile_pic_url=None, profile_pic_url_hd=None, edge_owner_to_timeline_media=None)), 200, "empty"),
        ("", 613, Refusal.BLOCKED),
        (page(user()), 613, Refusal.BLOCKED),
        ("", 404, Refusal.GONE),
        ("", 429, Refusal.BLOCKED),
        ({"message": "Please wait a few minutes", "require_login": True, "status": "fail"}, 401, Refusal.BLOCKED),
        ({"message": "Please wait a few minutes", "require_login": True, "status": "fail"}, 200, Refusal.BLOCKED),
        ("<html>Log in</html>", 200, Refusal.UNREADABLE),
        ([1, 2], 200, Refusal.UNREADABLE),
        ({"data": {"hashtag": {}}}, 200, Refusal.UNREADABLE),
    ],
)
def test_what_is_no_profile_says_why(content: Any, status: int, expected: str) -> None:
    assert refusal(content, status) == expected


def test_another_profile_is_no_answer_because_its_avatar_would_be_taken_for_this_ones() -> None:
    assert refusal(page(user(username="lakers"))) is Refusal.UNREADABLE


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"results": [{"content": page(user()), "status_code": 200}]}, None),
        ({"results": {"0": {"content": page(user()), "status_code": 200}}}, None),
        ({"data": {"content": page(user()), "status_code": 12000}}, None),
        ({"status_code": 613}, Refusal.BLOCKED),
        ({"results": []}, Refusal.EMPTY),
        (None, Refusal.EMPTY),
        ([], Refusal.EMPTY),
    ],
)
def test_a_body_is_read_in_either_envelope(body: Any, expected: Refusal | None) -> None:
    found = read_body(body, "nba")
    assert (found.refusal if isinstance(found, NoProfile) else None) == expected


@pytest.mark.parametrize(
    ("message", "unknown"),
    [
        ("Unknown target", True),
        ("unknown target: instagram_graphql_profile", True),
        ('Target "instagram_graphql_profile" is not supported', True),
        ("The target is deprecated", True),
        ("The target website did not answer", False),
        ("Internal error", False),
        ("", False),
    ],
)
def test_a_target_that_is_no_longer_offered_is_told_from_a_target_that_is_down(message: str, unknown: bool) -> None:
    assert names_unknown_target(message) is unknown


# -- anything --

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(url("x"))
KEYS = st.sampled_from(
    (
        "results",
        "content",
        "status_code",
        "data",
        "user",
        "graphql",
        "edges",
        "node",
        "id",
        "display_url",
        "errors",
        "profile_pic_url",
        "profile_pic_url_hd",
        "edge_owner_to_timeline_media",
        "edge_sidecar_to_children",
        "owner",
        "shortcode_media",
        "xdt_shortcode_media",
        "username",
        "is_private",
        "message",
        "queries",
        "query",
        "status",
    )
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=6),
    max_leaves=40,
)
NEARLY_A_PROFILE = st.fixed_dictionaries(
    {},
    optional={
        "username": ANY_JSON | st.just("nba"),
        "is_private": ANY_JSON | st.just(False),
        "profile_pic_url": ANY_JSON | st.just(url("me")),
        "profile_pic_url_hd": ANY_JSON,
        "edge_owner_to_timeline_media": st.fixed_dictionaries(
            {"edges": st.lists(st.fixed_dictionaries({"node": ANY_JSON}) | ANY_JSON, max_size=4) | ANY_JSON}
        ),
    },
).map(page)


@given(body=ANY_JSON)
def test_any_body_is_a_profile_or_a_reason(body: Any) -> None:
    found = read_body(body, "nba")
    assert isinstance(found, ProvidedProfile | NoProfile)
    assert found.username == "nba"
    assert all(isinstance(result, dict) for result in results_of(body))
    assert all(isinstance(task, str) for task in tasks_of(body).values())
    assert status_of(body) is None or isinstance(body, dict)
    assert isinstance(message_of(body), str)


@given(content=NEARLY_A_PROFILE | NEARLY_A_PROFILE.map(json.dumps) | ANY_JSON | st.text())
def test_any_content_is_pictures_that_can_be_requested_or_a_reason(content: Any) -> None:
    found = answer(content)
    if isinstance(found, ProvidedProfile):
        assert found.images
        for image in found.images:
            assert image.source_type in ("profile_avatar", "post_thumbnail", "post_carousel")
            assert 0 < len(image.media_id) <= 100
            assert all(candidate.url.startswith(("http://", "https://")) for candidate in image.candidates)
    else:
        assert isinstance(found, NoProfile)
        assert len(found.detail) < 300
