"""A profile's pictures as a frontend gets them: what is published, in the order of the posts, and nothing broken."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.discovery import ImageKey, ImageReference
from cdn_pipeline_tests.api.apis import api
from cdn_pipeline_tests.queue.catalogs import (
    NOW,
    RUN,
    both_sizes,
    original_of,
    outcome,
    see,
    source_url,
    take,
)

PROFILE = "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000b"
PLACEHOLDER = "LEHV6nWB2yk8pyo0adR*.7kCMdnj"


def image(
    source_type: str, source_id: str, media_id: str, day: int | None = None, owner: str = PROFILE
) -> ImageReference:
    """A sighting; `day` is that of the post's date."""
    taken_at = None if day is None else datetime(2026, 3, day, tzinfo=NOW.tzinfo)
    url = source_url(f"{source_id}-{media_id}", picture=f"{source_id}/{media_id}")
    return ImageReference(ImageKey(source_type, source_id, media_id), owner, "00", taken_at, (url,), NOW)


def avatar(owner: str = PROFILE) -> ImageReference:
    return image("profile_avatar", owner, "avatar", owner=owner)


def post(number: int, owner: str = PROFILE) -> ImageReference:
    return image("post_thumbnail", f"post-{number}", f"media-{number}", number, owner)


def child(number: int, name: str) -> ImageReference:
    return image("post_carousel", f"post-{number}", name, number)


def publish(connection: sa.Connection, *images: ImageReference) -> None:
    """Sees these and publishes them, together with whatever else is due."""
    see(connection, *images)
    settle(connection, RUN, [published(job) for job in take(connection)])


def published(job: DueJob) -> Any:
    made = both_sizes(job.media_id)
    return outcome(
        job,
        Verdict.PUBLISHED,
        Stage.PUBLISH,
        original=original_of(job),
        renditions=tuple(replace(each, path=f"/{job.source_id}/{job.media_id}/{each.size_name}") for each in made),
        placeholder=PLACEHOLDER,
    )


def media(client: httpx.Client, profile: str = PROFILE, **parameters: Any) -> Any:
    answer = client.get(f"/api/v1/creators/ig/{profile}/media", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def shown(document: Any) -> Sequence[str]:
    return [each["mediaId"] for each in document["posts"]]


def test_a_published_profile_has_the_documents_exact_keys(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, avatar(), post(1))
    document = media(client)
    assert list(document) == ["profile_id", "avatar", "posts", "processing_status"]
    assert document["avatar"] == {
        "256": f"http://127.0.0.1:8000/{PROFILE}/avatar/256",
        "512": f"http://127.0.0.1:8000/{PROFILE}/avatar/512",
        "available": True,
        "width": 512,
        "height": 512,
        "placeholder": PLACEHOLDER,
    }
    assert document["posts"] == [
        {
            "postId": "post-1",
            "mediaId": "media-1",
            "thumb": {
                "256": "http://127.0.0.1:8000/post-1/media-1/256",
                "512": "http://127.0.0.1:8000/post-1/media-1/512",
            },
            "available": True,
            "width": 512,
            "height": 512,
            "placeholder": PLACEHOLDER,
            "takenAt": "2026-03-01T00:00:00+00:00",
            "children": [],
        }
    ]
    assert document["processing_status"] == {
        "queued": False,
        "total_assets": 2,
        "completed_assets": 2,
        "completion_percentage": 100.0,
    }


def test_what_is_not_published_has_no_url_and_no_source_url_either(
    client: httpx.Client, connection: sa.Connection
) -> None:
    see(connection, avatar(), post(1))
    answer = client.get(f"/api/v1/creators/ig/{PROFILE}/media")
    document = answer.json()
    assert document["avatar"] == {
        "256": None,
        "512": None,
        "available": False,
        "width": None,
        "height": None,
        "placeholder": None,
    }
    assert document["processing_status"] == {
        "queued": True,
        "total_assets": 2,
        "completed_assets": 0,
        "completion_percentage": 0.0,
    }
    assert "cdn.example" not in answer.text
    assert answer.headers["cache-control"] == "public, max-age=5"


def test_with_the_fallback_a_picture_names_its_source_url_until_it_is_published(
    settings: Settings, connection: sa.Connection
) -> None:
    publish(connection, avatar())
    dead = replace(post(2), candidates=(source_url("dead", lives=timedelta(hours=-1)),))
    see(connection, post(1), dead)
    with api(settings, media_legacy_fallback=True) as client:
        document = media(client)
    assert "legacyUrl" not in document["avatar"]
    legacy = {each["mediaId"]: each["legacyUrl"] for each in document["posts"]}
    assert legacy == {"media-1": "https://cdn.example/post-1/media-1-post-1-media-1.jpg", "media-2": None}


def test_a_picture_that_is_being_replaced_keeps_its_urls(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, replace(avatar(), observed_at=NOW - timedelta(hours=1)))
    before = media(client)["avatar"]
    see(connection, replace(avatar(), candidates=(source_url("new", picture="new"),)))
    after = media(client)
    assert after["avatar"] == before
    assert after["processing_status"]["queued"]


def test_posts_come_latest_first_and_no_more_than_asked_for(client: httpx.Client, connection: sa.Connection) -> None:
    undated = image("post_thumbnail", "post-0", "media-0")
    publish(connection, avatar(), undated, *(post(number) for number in range(1, 15)))
    assert shown(media(client)) == [f"media-{number}" for number in range(14, 2, -1)]
    assert shown(media(client, posts=3)) == ["media-14", "media-13", "media-12"]
    everything = media(client, posts=100)
    assert shown(everything)[-1] == "media-0"
    assert everything["processing_status"]["total_assets"] == 16
    assert everything["avatar"]["available"]


def test_children_stand_apart_beneath_their_post(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, post(1), child(1, "a"), child(1, "b"), post(2))
    document = media(client, posts=2)
    assert [[each["mediaId"] for each in post["children"]] for post in document["posts"]] == [[], ["a", "b"]]
    assert all(each["available"] for each in document["posts"][1]["children"])
    assert document["processing_status"]["total_assets"] == 4
    assert media(client, posts=1)["processing_status"]["total_assets"] == 1


def test_a_post_without_a_picture_of_its_own_still_shows_its_children(
    client: httpx.Client, connection: sa.Connection
) -> None:
    publish(connection, child(1, "a"))
    (found,) = media(client)["posts"]
    assert (found["mediaId"], found["available"], found["thumb"]) == (None, False, {"256": None, "512": None})
    assert found["children"][0]["available"]


def test_a_post_that_is_gone_from_the_application_is_not_shown(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, post(1), post(2))
    connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = now() WHERE source_id = 'post-1'"))
    assert shown(media(client)) == ["media-2"]


def test_other_formats_and_superseded_renditions_are_not_named(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, avatar())
    before = media(client)
    connection.execute(
        sa.text("""
            INSERT INTO cdn_image_renditions (asset_id, size_name, format, width, height, file_size, content_hash, path,
                original_sha256, recipe, recipe_version, encoder, state)
            SELECT asset_id, size_name, other.format, 2048, 2048, 1, 'x', path || other.state, 'x', 'x', 1, 'x',
                   other.state
            FROM cdn_image_renditions, (VALUES ('avif', 'current'), ('webp', 'superseded'), ('webp', 'stored'))
                AS other(format, state)
        """)
    )
    assert media(client) == before


def test_an_unknown_profile_is_a_problem_that_says_so(client: httpx.Client) -> None:
    answer = client.get(f"/api/v1/creators/ig/{uuid.uuid4()}/media")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "No picture of this profile is known" in answer.json()["detail"]
    assert client.get("/api/v1/creators/ig/nobody/media").status_code == 422


def test_many_profiles_come_in_the_order_in_which_they_were_asked_for(
    client: httpx.Client, connection: sa.Connection
) -> None:
    publish(connection, avatar(), avatar(OTHER), post(1, OTHER))
    unknown = str(uuid.uuid4())
    answer = client.get("/api/v1/creators/ig/media", params={"profile_id": [OTHER, unknown, PROFILE, OTHER]})
    assert answer.status_code == 200
    assert answer.json() == {"profiles": [media(client, OTHER), media(client)], "unknown": [unknown]}


def test_no_profile_and_too_many_profiles_are_refused(client: httpx.Client) -> None:
    assert client.get("/api/v1/creators/ig/media").status_code == 422
    many = [str(uuid.uuid4()) for _ in range(101)]
    assert client.get("/api/v1/creators/ig/media", params={"profile_id": many}).status_code == 422


@pytest.mark.parametrize("wrap", ["{}", "W/{}", '"other", {}', "*"])
def test_what_the_caller_has_is_not_sent_again(client: httpx.Client, connection: sa.Connection, wrap: str) -> None:
    publish(connection, avatar())
    url = f"/api/v1/creators/ig/{PROFILE}/media"
    first = client.get(url)
    again = client.get(url, headers={"If-None-Match": wrap.format(first.headers["etag"])})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["cache-control"] == "public, max-age=60, stale-while-revalidate=180"


def test_a_change_changes_the_tag(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, avatar())
    url = f"/api/v1/creators/ig/{PROFILE}/media"
    before = client.get(url).headers["etag"]
    publish(connection, post(1))
    assert client.get(url, headers={"If-None-Match": before}).status_code == 200


def test_the_document_is_what_the_openapi_document_says(client: httpx.Client, connection: sa.Connection) -> None:
    from cdn_pipeline.api.media import ProfileMedia

    publish(connection, avatar(), post(1), child(1, "a"))
    see(connection, post(2))
    document = media(client)
    told = ProfileMedia.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert datetime.fromisoformat(told["posts"][1].pop("takenAt")) == datetime.fromisoformat(
        document["posts"][1].pop("takenAt")
    )
    told["posts"][0].pop("takenAt")
    document["posts"][0].pop("takenAt")
    assert told == document
