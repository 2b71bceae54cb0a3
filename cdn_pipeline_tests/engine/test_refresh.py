"""A run does users' refreshes: source rows read again, the provider asked, the answer noted, nothing lost."""

import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.demo import app_database as demo
from cdn_pipeline.demo.app_database import profiles_table
from cdn_pipeline.engine import refresh as module
from cdn_pipeline.engine.discover import discover, discover_owners
from cdn_pipeline.engine.refetch import Patience
from cdn_pipeline.engine.refresh import refresh_owners
from cdn_pipeline.queue.erasures import take_down
from cdn_pipeline.queue.fresh_urls import Allowance, claim_owners
from cdn_pipeline.queue.refreshes import Limits, RefreshAnswer, open_refresh
from cdn_pipeline.queue.tombstones import set_owner_tombstone
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.provider import Answer, ProviderRefusedError, Refusal
from cdn_pipeline_tests.api.apis import with_settings
from cdn_pipeline_tests.engine.runs import QUICK, image, jobs, rows, run
from cdn_pipeline_tests.engine.test_refetch import Told, fresh_avatar, username
from cdn_pipeline_tests.sources.decodo_service import (
    TOKEN,
    DecodoService,
    profile_page,
    running_decodo,
    user_of_rows,
)
from cdn_pipeline_tests.world import SmallWorld, World

HURRY = Patience(owners_at_once=10, rounds=2, pause_seconds=0.0, seconds=20.0)
ALLOWANCE = Allowance("told", per_day=1000, per_second=1000.0)


@pytest.fixture
def decodo() -> Iterator[DecodoService]:
    with running_decodo() as service:
        yield service


@pytest.fixture
def world(small_world: SmallWorld, catalog: sa.Engine) -> World:
    """Three profiles that discovery has seen."""
    world = small_world(profiles=3, posts=0)
    list(discover(world.engine, catalog, QUICK, SHARDS))
    return world


def ask(catalog: sa.Engine, *owners: uuid.UUID) -> None:
    for owner in owners:
        with catalog.begin() as connection:
            assert open_refresh(connection, QUICK, str(owner), Limits())[1]


def do(settings: Settings, world: World, catalog: sa.Engine, **more: Any) -> dict[RefreshAnswer, int]:
    arguments = {"run_id": "run", "patience": HURRY, **more}
    return dict(refresh_owners(settings, world.engine, catalog, QUICK, SHARDS, **arguments))


def answers(catalog: sa.Engine) -> list[Any]:
    return [row["answer"] for row in rows(catalog, "SELECT answer FROM cdn_refreshes ORDER BY requested_at")]


def tell(monkeypatch: pytest.MonkeyPatch, provider: Any, allowance: Allowance = ALLOWANCE) -> None:
    """This provider is the one that the environment names."""

    @contextmanager
    def configured(settings: Settings) -> Iterator[Any]:
        yield provider, allowance

    monkeypatch.setattr(module, "configured_provider", configured)


def order(decodo: DecodoService, world: World, owner: uuid.UUID, **changes: Any) -> dict[str, Any]:
    """What the provider says of a profile: its pictures, signed again, but for these."""
    page = user_of_rows(world.engine, world.origin.signer, owner, world.origin.now() + timedelta(days=5)) | changes
    decodo.order(page["username"], profile_page(page))
    return page


def other_avatar(world: World, owner: uuid.UUID) -> dict[str, str]:
    """URLs of another picture, of which the application's rows know nothing."""
    with world.engine.connect() as connection:
        before = connection.execute(sa.select(profiles_table).where(profiles_table.c.id == owner)).mappings().one()
    demo.replace_avatar(world.engine, world.origin.signer, owner)
    urls = ("profile_pic_url", "profile_pic_url_hd")
    with world.engine.begin() as connection:
        after = connection.execute(sa.select(profiles_table).where(profiles_table.c.id == owner)).mappings().one()
        connection.execute(profiles_table.update().where(profiles_table.c.id == owner).values(**before))
    return {name: after[name] for name in urls}


def test_an_avatar_that_the_provider_shows_anew_becomes_due_before_everything_else(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, decodo: DecodoService
) -> None:
    world = small_world(profiles=1, posts=2)
    run(settings)
    [owner] = world.profile_ids
    old = image(catalog, owner)
    new = order(decodo, world, owner, **other_avatar(world, owner))["profile_pic_url_hd"]
    ask(catalog, owner)
    configured = with_settings(settings, decodo_api_url=decodo.base_url, decodo_auth_token=TOKEN)

    assert do(configured, world, catalog) == {RefreshAnswer.ANSWERED: 1}

    [job] = [job for job in jobs(catalog) if job["status"] == "queued"]
    assert (job["source_url"], job["priority"], job["job_type"]) == (new, 1, "update")
    run(settings)
    published = image(catalog, owner)
    assert published["processing_status"] == "completed"
    assert published["original_sha256"] != old["original_sha256"]
    assert do(configured, world, catalog) == {}


def test_without_a_provider_the_owners_source_rows_are_read_whatever_the_watermark_says(
    world: World, settings: Settings, catalog: sa.Engine
) -> None:
    first, *others = world.profile_ids
    for owner in world.profile_ids:
        demo.replace_avatar(world.engine, world.origin.signer, owner)
    with world.engine.begin() as connection:
        connection.execute(sa.text("UPDATE profiles SET updated_at = clock_timestamp()"))
    before = {owner: image(catalog, owner)["source_url"] for owner in world.profile_ids}
    ask(catalog, first)
    assert do(settings, world, catalog) == {RefreshAnswer.NO_PROVIDER: 1}
    assert image(catalog, first)["source_url"] != before[first]
    assert [image(catalog, owner)["source_url"] for owner in others] == [before[owner] for owner in others]
    assert sorted(job["priority"] for job in jobs(catalog)) == [1, 2, 2]


@pytest.mark.parametrize(
    ("refusal", "answer"),
    [
        (Refusal.PRIVATE, RefreshAnswer.PRIVATE),
        (Refusal.GONE, RefreshAnswer.GONE),
        (Refusal.EMPTY, RefreshAnswer.UNAVAILABLE),
        (Refusal.BLOCKED, RefreshAnswer.UNAVAILABLE),
        (Refusal.UNAVAILABLE, RefreshAnswer.UNAVAILABLE),
        (ProviderRefusedError("no credentials"), RefreshAnswer.UNAVAILABLE),
    ],
)
def test_what_the_provider_says_is_the_answer(
    world: World,
    settings: Settings,
    catalog: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
    refusal: object,
    answer: RefreshAnswer,
) -> None:
    owner = world.profile_ids[0]
    tell(monkeypatch, Told({username(world, owner): [refusal]}))
    ask(catalog, owner)
    assert do(settings, world, catalog) == {answer: 1}
    assert answers(catalog) == [answer]


def test_who_was_private_today_is_not_asked_for_again(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = world.profile_ids[0]
    told = Told({username(world, owner): [Refusal.PRIVATE]})
    tell(monkeypatch, told)
    for _ in range(2):
        ask(catalog, owner)
        assert do(settings, world, catalog) == {RefreshAnswer.PRIVATE: 1}
        with catalog.begin() as connection:
            connection.execute(sa.text("UPDATE cdn_refreshes SET finished_at = finished_at - interval '1 hour'"))
    assert len(told.asked) == 1


def test_a_spent_budget_is_an_answer(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = world.profile_ids
    told = Told({username(world, owner): [fresh_avatar(world, owner)] for owner in (first, second)})
    tell(monkeypatch, told, Allowance("told", per_day=1, per_second=1000.0))
    ask(catalog, first, second)
    assert do(settings, world, catalog) == {RefreshAnswer.ANSWERED: 1, RefreshAnswer.BUDGET_SPENT: 1}
    assert answers(catalog) == [RefreshAnswer.ANSWERED, RefreshAnswer.BUDGET_SPENT]


def test_an_owner_without_a_user_name_has_nobody_asked_for(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = world.profile_ids[0]
    with world.engine.begin() as connection:
        connection.execute(profiles_table.update().where(profiles_table.c.id == owner).values(username=" "))
    tell(monkeypatch, told := Told({}))
    ask(catalog, owner)
    assert do(settings, world, catalog) == {RefreshAnswer.NO_USER_NAME: 1}
    assert told.asked == []


def test_of_two_owners_with_one_user_name_the_second_is_the_next_runs(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.engine.begin() as connection:
        connection.execute(profiles_table.update().values(username="twin"))
    tell(monkeypatch, Told({"twin": [Refusal.GONE]}))
    ask(catalog, *world.profile_ids[:2])
    assert do(settings, world, catalog) == {RefreshAnswer.GONE: 1}
    assert answers(catalog) == [RefreshAnswer.GONE, None]
    assert do(settings, world, catalog, run_id="next") == {RefreshAnswer.GONE: 1}


class Hanging:
    """A provider that answers the first question and hangs with the others until it is let go."""

    name = "hanging"

    def __init__(self, first: Answer) -> None:
        self.let_go = threading.Event()
        self._first = first

    def fetch(self, usernames: Sequence[str]) -> Iterator[Answer]:
        yield self._first
        self.let_go.wait(60)


def test_a_provider_that_hangs_holds_up_the_run_for_its_time_only_and_what_it_said_is_kept(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = world.profile_ids
    [answer] = Told({username(world, first): [fresh_avatar(world, first)]}).fetch([username(world, first)])
    hanging = Hanging(answer)
    tell(monkeypatch, hanging)
    ask(catalog, first, second)
    patience = Patience(owners_at_once=10, rounds=3, pause_seconds=0.0, seconds=0.5)
    assert do(settings, world, catalog, patience=patience) == {
        RefreshAnswer.ANSWERED: 1,
        RefreshAnswer.UNAVAILABLE: 1,
    }
    assert not hanging.let_go.is_set()  # nobody waited for its end
    hanging.let_go.set()


def test_a_vendor_that_takes_connections_and_never_answers_holds_up_nobody(
    world: World, settings: Settings, catalog: sa.Engine
) -> None:
    ask(catalog, world.profile_ids[0])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        configured = with_settings(settings, decodo_api_url=url, decodo_auth_token=TOKEN)
        patience = Patience(owners_at_once=10, rounds=2, pause_seconds=0.0, seconds=0.5)
        assert do(configured, world, catalog, patience=patience) == {RefreshAnswer.UNAVAILABLE: 1}


def test_who_could_not_be_asked_for_in_time_is_the_next_runs(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = world.profile_ids
    told = Told({username(world, owner): [fresh_avatar(world, owner)] for owner in owners})
    tell(monkeypatch, told)
    ask(catalog, *owners)
    over = Patience(owners_at_once=1, seconds=-1.0)
    assert do(settings, world, catalog, patience=over) == {}
    assert answers(catalog) == [None] * 3
    assert do(settings, world, catalog, run_id="next") == {RefreshAnswer.ANSWERED: 3}


class Killed(BaseException):
    """The end of the process, as far as a run can see it."""


def two_answers(world: World, second: list[Any]) -> tuple[uuid.UUID, uuid.UUID, Told]:
    """The first owner's pictures come at once, of the second's this."""
    first, other, _ = world.profile_ids
    return first, other, Told({username(world, first): [fresh_avatar(world, first)], username(world, other): second})


def test_a_run_that_is_killed_in_the_middle_has_finished_what_was_answered_and_leaves_the_rest_to_the_next(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, told = two_answers(world, [Killed(), fresh_avatar(world, world.profile_ids[1])])
    tell(monkeypatch, told)
    ask(catalog, first, second)
    with pytest.raises(Killed):
        do(settings, world, catalog, run_id="killed")
    assert answers(catalog) == [RefreshAnswer.ANSWERED, None]
    assert do(settings, world, catalog, run_id="next") == {RefreshAnswer.ANSWERED: 1}


def test_a_page_that_nobody_expected_is_logged_and_keeps_nobody_elses_answer_and_no_shard(
    world: World,
    settings: Settings,
    catalog: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second, told = two_answers(world, [KeyError("an unexpected page")])
    tell(monkeypatch, told)
    ask(catalog, first, second)
    assert do(settings, world, catalog) == {RefreshAnswer.ANSWERED: 1, RefreshAnswer.UNAVAILABLE: 1}
    assert answers(catalog) == [RefreshAnswer.ANSWERED, RefreshAnswer.UNAVAILABLE]
    assert "an unexpected page" in caplog.text


def test_an_application_database_without_user_names_is_an_answer_and_rows_are_read_all_the_same(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, told := Told({}))
    with world.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE profiles DROP COLUMN username"))
    ask(catalog, world.profile_ids[0])
    assert do(settings, world, catalog) == {RefreshAnswer.UNAVAILABLE: 1}
    assert told.asked == []


def test_refreshes_leave_half_of_the_requests_of_a_day_to_the_nights(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_world(profiles=5, posts=0)
    list(discover(world.engine, catalog, QUICK, SHARDS))
    told = Told({username(world, owner): [Refusal.BLOCKED] for owner in world.profile_ids})
    tell(monkeypatch, told, Allowance("told", per_day=10, per_second=1000.0))
    ask(catalog, *world.profile_ids)
    do(settings, world, catalog)
    assert rows(catalog, "SELECT requests FROM cdn_provider_usage") == [{"requests": 5}]


def test_a_refresh_does_not_wait_for_the_rate_any_longer_than_it_has_time(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = world.profile_ids[0]
    slow = Allowance("told", per_day=1000, per_second=0.01)
    tell(monkeypatch, told := Told({username(world, owner): [fresh_avatar(world, owner)]}), slow)
    with catalog.begin() as connection:
        claim_owners(connection, QUICK, slow, ["of the night"])
    ask(catalog, owner)
    assert do(settings, world, catalog) == {}
    assert (told.asked, answers(catalog)) == ([], [None])
    assert rows(catalog, "SELECT requests FROM cdn_provider_usage") == [{"requests": 1}]


def test_an_owner_erased_between_the_taking_and_the_asking_is_not_asked_for(
    world: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = world.profile_ids[0]
    tell(monkeypatch, told := Told({username(world, owner): [fresh_avatar(world, owner)]}))
    ask(catalog, owner)

    def erase_first(*arguments: Any) -> Any:
        with catalog.begin() as connection:
            take_down(connection, set_owner_tombstone(connection, QUICK, str(owner)))
        return discover_owners(*arguments)

    monkeypatch.setattr(module, "discover_owners", erase_first)
    assert do(settings, world, catalog) == {}
    assert told.asked == []
    for table in ("cdn_refreshes", "cdn_provider_owners"):
        assert rows(catalog, f"SELECT * FROM {table} WHERE owner_id = '{owner}'") == []
