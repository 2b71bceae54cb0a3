"""While the CDN is off for a profile, the media API names where its pictures are today."""

from dataclasses import replace
from datetime import timedelta

import httpx
import sqlalchemy as sa

from cdn_pipeline.queue.delivery_policy import has_cdn_urls, set_percentage, switch_off, switch_on
from cdn_pipeline_tests.api.test_media import OTHER, PROFILE, avatar, media, post, publish
from cdn_pipeline_tests.queue.catalogs import source_url


def test_a_cdn_that_is_off_has_legacy_urls_answered_at_once_and_on_again_its_own(
    client: httpx.Client, connection: sa.Connection
) -> None:
    publish(connection, avatar(), post(1))
    before = media(client)
    switch_off(connection, "test", expires_in=None)
    off = media(client)
    assert off["avatar"]["256"] is off["avatar"]["512"] is None
    assert off["avatar"]["legacyUrl"] == f"https://cdn.example/{PROFILE}/avatar-{PROFILE}-avatar.jpg"
    assert off["posts"][0]["thumb"] == {"256": None, "512": None}
    assert off["posts"][0]["legacyUrl"].startswith("https://cdn.example/post-1/")
    assert not off["posts"][0]["available"]
    assert off["processing_status"] == before["processing_status"]  # what is published stays published
    assert off["avatar"]["placeholder"] == before["avatar"]["placeholder"]
    switch_on(connection, "test")
    assert media(client) == before


def test_an_expired_legacy_url_is_not_named(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, replace(avatar(), candidates=(source_url("short", lives=timedelta(hours=1)),)))
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 minute'"))
    switch_off(connection, "test", expires_in=None)
    assert media(client)["avatar"]["legacyUrl"] is None


def test_a_switch_that_has_expired_is_on(client: httpx.Client, connection: sa.Connection) -> None:
    publish(connection, avatar())
    switch_off(connection, "test", expires_in=timedelta(minutes=5))
    assert media(client)["avatar"]["512"] is None
    connection.execute(sa.text("UPDATE cdn_delivery_policy SET off_until = now()"))
    assert media(client)["avatar"]["512"]


def test_a_percentage_gives_some_profiles_cdn_urls_and_the_others_legacy_ones(
    client: httpx.Client, connection: sa.Connection
) -> None:
    publish(connection, avatar(), avatar(OTHER))
    percent = next(percent for percent in range(100) if has_cdn_urls(PROFILE, percent) != has_cdn_urls(OTHER, percent))
    set_percentage(connection, "test", percent)
    answer = client.get("/api/v1/creators/ig/media", params={"profile_id": [PROFILE, OTHER]}).json()
    for profile in answer["profiles"]:
        on_cdn = has_cdn_urls(profile["profile_id"], percent)
        assert (profile["avatar"]["512"] is not None) == profile["avatar"]["available"] == on_cdn
        assert ("legacyUrl" in profile["avatar"]) == (not on_cdn)


def test_caches_forget_what_they_were_answered_before_a_rollback_has_to_be_over(
    client: httpx.Client, connection: sa.Connection
) -> None:
    publish(connection, avatar())
    header = client.get(f"/api/v1/creators/ig/{PROFILE}/media").headers["cache-control"]
    seconds = [int(part.partition("=")[2]) for part in header.split(", ") if "=" in part]
    assert sum(seconds) == 240


def test_health_and_status_tell_that_the_cdn_is_off(client: httpx.Client, connection: sa.Connection) -> None:
    switch_off(connection, "test", expires_in=None)
    delivery = client.get("/api/v1/health/cdn").json()["checks"]["cdn_delivery"]
    assert delivery["status"] == "degraded"
    assert "switched off" in delivery["words"]
    assert "cdn-pipeline cdn on" in delivery["first"]
