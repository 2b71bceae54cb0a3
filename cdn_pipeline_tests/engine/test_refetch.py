"""From an expired URL to a published picture, by way of the provider; and what happens when that does not answer."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo.app_database import posts_table, profiles_table
from cdn_pipeline.engine.discover import discover
from cdn_pipeline.engine.refetch import Patience, Refetched, Stopped, refetch, refetch_configured
from cdn_pipeline.queue.fresh_urls import Allowance, claim_owners
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline.sources.instagram import parse
from cdn_pipeline.sources.provider import (
    Answer,
    NoProfile,
    ProvidedImage,
    ProvidedProfile,
    ProviderRefusedError,
    Refusal,
)
from cdn_pipeline_tests.engine.runs import QUICK, image, images, jobs, rows, run, view
from cdn_pipeline_tests.sources.decodo_service import (
    DecodoService,
    kill_urls,
    profile_page,
    running_decodo,
    user_of_rows,
)
from cdn_pipeline_tests.world import SmallWorld, World

DAY = timedelta(days=1)
HURRY = Patience(owners_at_once=10, rounds=3, pause_seconds=0.0)
ALLOWANCE = Allowance("decodo", per_day=1000, per_second=1000.0)


@pytest.fixture
def decodo() -> Iterator[DecodoService]:
    with running_decodo() as service:
        yield service


def username(world: World, profile_id: uuid.UUID) -> str:
    query = sa.select(profiles_table.c.username).where(profiles_table.c.id == profile_id)
    with world.engine.connect() as connection:
        return str(connection.execute(query).scalar_one())


def ask(provider: Any, world: World, catalog: sa.Engine, **more: Any) -> Refetched:
    arguments = {"allowance": ALLOWANCE, "patience": HURRY, **more}
    return refetch(provider, source=world.engine, catalog=catalog, collection=QUICK, shards=SHARDS, **arguments)


def read_rows(world: World, catalog: sa.Engine) -> None:
    list(discover(world.engine, catalog, QUICK, SHARDS))


def state_of_source(world: World) -> list[Any]:
    with world.engine.connect() as connection:
        return [connection.execute(sa.select(table)).all() for table in (profiles_table, posts_table)]


def test_an_expired_url_is_fetched_again_and_its_picture_published(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, decodo: DecodoService
) -> None:
    world = small_world(profiles=3, posts=6, seed=2)
    fresh_until = world.origin.now() + 4 * DAY
    for profile_id in world.profile_ids:
        page = profile_page(user_of_rows(world.engine, world.origin.signer, profile_id, fresh_until))
        decodo.order(username(world, profile_id), page)
    kill_urls(world.engine, world.origin.now() - 2 * DAY)
    run(settings)
    known = {(row["source_type"], row["source_id"], row["media_id"]) for row in images(catalog)}
    assert {source_type for source_type, *_ in known} == {"profile_avatar", "post_thumbnail", "post_carousel"}
    assert view(catalog) == {}
    before = state_of_source(world)

    with decodo.client() as client:
        found = ask(client, world, catalog)

    assert (found.asked.total(), found.answered.total(), found.fresh_urls.total()) == (3, 3, len(known))
    assert (found.still_waiting.total(), found.stopped, found.budget_left) == (0, None, 997)
    run(settings)  # which reads the old rows once more: they are outdated
    assert view(catalog).keys() == known
    assert {row["processing_status"] for row in images(catalog)} == {"completed"}
    assert state_of_source(world) == before
    with decodo.client() as client:
        assert ask(client, world, catalog).asked.total() == 0


def test_a_url_that_dies_within_the_day_is_replaced_and_its_open_job_follows(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=1, posts=0)
    read_rows(world, catalog)
    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() + interval '5 hours'"))
    [old] = images(catalog)
    page = user_of_rows(world.engine, world.origin.signer, world.profile_ids[0], world.origin.now() + 5 * DAY)

    found = ask(Told({username(world, world.profile_ids[0]): [avatar(page["profile_pic_url_hd"])]}), world, catalog)

    assert found.fresh_urls == {shard_of(world.profile_ids[0]): 1}
    [new], [job] = images(catalog), jobs(catalog)
    assert new["source_url"] == page["profile_pic_url_hd"] == job["source_url"]
    assert new["identity"] == old["identity"]
    assert new["observed_at"] > old["observed_at"]
    read_rows(world, catalog)
    assert image(catalog, world.profile_ids[0])["source_url"] == new["source_url"]


def test_a_picture_of_a_post_that_no_row_tells_of_is_not_taken(small_world: SmallWorld, catalog: sa.Engine) -> None:
    world = small_world(profiles=1, posts=0)
    kill_urls(world.engine, world.origin.now() - 2 * DAY)
    read_rows(world, catalog)
    page = user_of_rows(world.engine, world.origin.signer, world.profile_ids[0], world.origin.now() + 5 * DAY)
    url = parse(page["profile_pic_url_hd"])
    told = Told({username(world, world.profile_ids[0]): [ProvidedImage("post_thumbnail", "4711", (url,))]})
    found = ask(told, world, catalog)
    assert (found.answered.total(), found.fresh_urls.total(), found.still_waiting.total()) == (1, 0, 1)
    assert len(images(catalog)) == 1


@dataclass
class Told:
    """A provider that says what it was told to: pictures, reasons, errors, one after the other, the last for ever."""

    answers: dict[str, list[Any]]
    name: str = "told"
    asked: list[list[str]] = field(default_factory=list)

    def fetch(self, usernames: Sequence[str]) -> Iterator[Answer]:
        self.asked.append(sorted(usernames))
        for name in usernames:
            told = self.answers[name]
            answer = told.pop(0) if len(told) > 1 else told[0]
            if isinstance(answer, BaseException):
                raise answer
            yield NoProfile(name, answer) if isinstance(answer, Refusal) else ProvidedProfile(name, (answer,))


def avatar(url: str) -> ProvidedImage:
    return ProvidedImage("profile_avatar", "avatar", (parse(url),))


@pytest.fixture
def dead_world(small_world: SmallWorld, catalog: sa.Engine) -> World:
    """Four profiles whose avatars arrived dead."""
    world = small_world(profiles=4, posts=0)
    kill_urls(world.engine, world.origin.now() - 2 * DAY)
    read_rows(world, catalog)
    return world


def names(world: World) -> list[str]:
    return [username(world, profile_id) for profile_id in world.profile_ids]


def fresh_avatar(world: World, profile_id: uuid.UUID) -> ProvidedImage:
    expires_at = world.origin.now() + 4 * DAY
    return avatar(user_of_rows(world.engine, world.origin.signer, profile_id, expires_at)["profile_pic_url_hd"])


def test_who_came_back_empty_is_asked_again_and_the_private_are_not(dead_world: World, catalog: sa.Engine) -> None:
    flaky, private, gone, never = names(dead_world)
    told = Told(
        {
            flaky: [Refusal.EMPTY, Refusal.BLOCKED, fresh_avatar(dead_world, dead_world.profile_ids[0])],
            private: [Refusal.PRIVATE],
            gone: [Refusal.GONE],
            never: [Refusal.EMPTY],
        }
    )
    found = ask(told, dead_world, catalog)
    assert told.asked == [sorted(names(dead_world)), sorted([flaky, never]), sorted([flaky, never])]
    assert found.answered.total() == 1
    assert found.refusals == {Refusal.PRIVATE: 1, Refusal.GONE: 1, Refusal.EMPTY: 1}
    assert (found.still_waiting.total(), found.budget_left, found.stopped) == (3, 992, None)
    assert ask(told, dead_world, catalog).asked.total() == 0


@pytest.mark.parametrize(
    ("refusal", "rounds"),
    [(Refusal.UNAVAILABLE, 1), (Refusal.RATE_LIMITED, 1), (Refusal.BLOCKED, 3), (Refusal.EMPTY, 3)],
)
def test_a_provider_that_answers_nothing_is_left_alone_and_nothing_is_held_against_the_owners(
    dead_world: World, catalog: sa.Engine, refusal: Refusal, rounds: int
) -> None:
    told = Told({name: [refusal] for name in names(dead_world)})
    found = ask(told, dead_world, catalog, patience=Patience(owners_at_once=2, rounds=3, pause_seconds=0.0))
    assert len(told.asked) == rounds
    assert found.stopped is Stopped.NO_ANSWERS
    assert (found.asked.total(), found.still_waiting.total()) == (2, 4)
    assert rows(catalog, "SELECT DISTINCT answer, refusals FROM cdn_provider_owners") == [
        {"answer": "unavailable", "refusals": 0}
    ]


def test_a_refusal_is_one_failure_and_nobodys_turn_is_lost(dead_world: World, catalog: sa.Engine) -> None:
    refused = ProviderRefusedError("Decodo does not take the question")
    told = Told({name: [refused] for name in names(dead_world)})
    found = ask(told, dead_world, catalog)
    assert (found.stopped, found.asked.total(), found.budget_left) == (Stopped.REFUSED, 0, 1000)
    assert found.why_stopped == str(refused)
    assert len(told.asked) == 1
    assert rows(catalog, "SELECT refused FROM cdn_provider_usage") == [{"refused": str(refused)}]

    mended = Told(
        {
            name: [fresh_avatar(dead_world, profile_id)]
            for name, profile_id in zip(names(dead_world), dead_world.profile_ids, strict=True)
        }
    )
    assert ask(mended, dead_world, catalog).fresh_urls.total() == 4


def test_the_budget_ends_the_asking(dead_world: World, catalog: sa.Engine) -> None:
    told = Told({name: [Refusal.PRIVATE] for name in names(dead_world)})
    found = ask(
        told,
        dead_world,
        catalog,
        allowance=Allowance("told", per_day=3, per_second=1000.0),
        patience=Patience(owners_at_once=2, pause_seconds=0.0),
    )
    assert (found.asked.total(), found.budget_left, found.stopped) == (3, 0, Stopped.BUDGET_SPENT)


def test_an_owner_whose_profile_is_gone_from_the_application_is_not_asked_for(
    dead_world: World, catalog: sa.Engine
) -> None:
    with dead_world.engine.begin() as connection:
        connection.execute(profiles_table.delete())
    told = Told({})
    assert ask(told, dead_world, catalog).asked.total() == 0
    assert told.asked == []


def test_two_owners_with_one_user_name_have_their_turns_in_two_nights(dead_world: World, catalog: sa.Engine) -> None:
    with dead_world.engine.begin() as connection:
        connection.execute(profiles_table.update().values(username="twin"))
    told = Told({"twin": [Refusal.PRIVATE]})
    assert ask(told, dead_world, catalog).asked.total() == 1
    assert ask(told, dead_world, catalog).asked.total() == 1


def test_without_a_provider_nothing_is_asked_and_images_wait(
    dead_world: World, settings: Settings, catalog: sa.Engine
) -> None:
    found = refetch_configured(settings, dead_world.engine, catalog, INSTAGRAM, SHARDS)
    assert (found.stopped, found.asked.total(), found.still_waiting.total()) == (Stopped.NO_PROVIDER, 0, 4)
    assert rows(catalog, "SELECT * FROM cdn_provider_usage") == []


def test_whoever_asks_again_waits_for_the_rate(dead_world: World, catalog: sa.Engine) -> None:
    flaky, *_ = names(dead_world)
    fresh = fresh_avatar(dead_world, dead_world.profile_ids[0])
    told = Told({name: [Refusal.GONE] for name in names(dead_world)} | {flaky: [Refusal.EMPTY, fresh]})
    moments: list[float] = []
    told_now = told.fetch

    def fetch(usernames: Sequence[str]) -> Iterator[Answer]:
        moments.append(time.monotonic())
        return told_now(usernames)

    told.fetch = fetch  # type: ignore[method-assign]
    twenty_a_second = Allowance("told", per_day=100, per_second=20.0)
    assert ask(told, dead_world, catalog, allowance=twenty_a_second).answered.total() == 1
    first, second = moments
    assert second - first > 3.5 / 20


def test_a_night_that_would_wait_for_longer_than_it_has_spends_nothing(dead_world: World, catalog: sa.Engine) -> None:
    slow = Allowance("told", per_day=100, per_second=0.01)
    with catalog.begin() as connection:
        claim_owners(connection, QUICK, slow, ["somebody"])
    found = ask(Told({}), dead_world, catalog, allowance=slow, patience=Patience(seconds=50.0))
    assert (found.stopped, found.asked.total(), found.budget_left) == (Stopped.TIME_IS_OVER, 0, 99)
