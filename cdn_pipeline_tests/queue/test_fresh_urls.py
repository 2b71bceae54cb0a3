"""Who wants fresh URLs, in which order; what is asked at most; and what is remembered of the answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.erasures import take_down
from cdn_pipeline.queue.fresh_urls import (
    LATELY,
    Allowance,
    Grant,
    ask_again,
    budget_left,
    claim_owners,
    images_of_owner,
    images_wanting_urls,
    note_answer,
    note_refused,
    owners_wanting_urls,
    refused_lately,
)
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.tombstones import set_owner_tombstone
from cdn_pipeline.sources.provider import Refusal
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    outcome,
    publish,
    reference,
    register,
    see,
    session,
    source_url,
    take_one,
)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
ALLOWANCE = Allowance("decodo", per_day=100, per_second=1000.0)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def wanting(connection: sa.Connection, limit: int = 100) -> list[str]:
    return [owner.owner_id for owner in owners_wanting_urls(connection, INSTAGRAM, SHARDS, limit=limit)]


def show(connection: sa.Connection, owner: str, lives: timedelta, *, image: str | None = None) -> None:
    see(connection, reference(source_url(image or owner, lives=lives), image=image or owner, owner=owner))


def claim(connection: sa.Connection, *owners: str, allowance: Allowance = ALLOWANCE) -> Grant:
    return claim_owners(connection, INSTAGRAM, allowance, owners)


def pass_time(connection: sa.Connection, by: timedelta) -> None:
    """What was noted lies so much further back."""
    connection.execute(
        sa.text("UPDATE cdn_provider_owners SET asked_at = asked_at - :by, next_ask_at = next_ask_at - :by"), {"by": by}
    )


# -- who wants --


def test_an_image_without_original_wants_a_url_when_its_own_dies_within_the_day(connection: sa.Connection) -> None:
    show(connection, "today", HOUR)
    show(connection, "later", 2 * DAY)
    show(connection, "dead", -2 * DAY)
    assert wanting(connection) == ["today", "dead"]
    assert images_wanting_urls(connection, INSTAGRAM, SHARDS) == {"00": 2}


@pytest.mark.parametrize("kind", [FailureKind.SOURCE_URL_404, FailureKind.SIGNATURE_MISMATCH])
def test_an_image_that_waits_for_a_fresh_url_wants_one_however_long_its_own_says_it_lives(
    connection: sa.Connection, kind: FailureKind
) -> None:
    register(connection, RUN)
    show(connection, "refused", 3 * DAY)
    assert wanting(connection) == []
    settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=kind)])
    assert wanting(connection) == ["refused"]


def test_what_is_published_gone_or_removed_wants_nothing(connection: sa.Connection) -> None:
    register(connection, RUN)
    show(connection, "published", HOUR)
    publish(connection)
    show(connection, "gone", HOUR)
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.SOURCE_GONE)])
    show(connection, "removed", HOUR)
    connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = now() WHERE owner_id = 'removed'"))
    assert wanting(connection) == []


def test_a_post_that_left_the_latest_twelve_wants_nothing(connection: sa.Connection) -> None:
    for number in range(14):
        show(connection, "owner", -2 * DAY, image=f"{number:02}")
    show(connection, "owner", 3 * DAY, image="avatar")
    connection.execute(
        sa.text("""
            UPDATE cdn_image_assets
            SET source_type = 'post_thumbnail', taken_at = now() - source_id::int * interval '1 day'
            WHERE source_id <> 'avatar'""")
    )
    assert images_wanting_urls(connection, INSTAGRAM, SHARDS) == {"00": 12}
    assert {key.source_id for key in images_of_owner(connection, INSTAGRAM, "owner")} == {
        "avatar",
        *(f"{number:02}" for number in range(12)),
    }
    connection.execute(
        sa.text(
            "UPDATE cdn_image_assets SET url_expires_at = now() + interval '3 days', "
            "processing_status = 'completed' WHERE source_id < '12'"
        )
    )
    assert wanting(connection) == []


def test_who_dies_next_comes_first_then_who_has_most_waiting(connection: sa.Connection) -> None:
    show(connection, "one dead", -2 * DAY)
    for number in range(2):
        show(connection, "two dead", -2 * DAY, image=f"dead {number}")
    show(connection, "in ten hours", 10 * HOUR)
    show(connection, "in an hour", HOUR)
    assert wanting(connection) == ["in an hour", "in ten hours", "two dead", "one dead"]
    assert wanting(connection, limit=1) == ["in an hour"]


# -- how often --


def test_an_owner_is_asked_for_once_a_day_even_if_nobody_heard_the_answer(connection: sa.Connection) -> None:
    show(connection, "owner", HOUR)
    assert claim(connection, "owner").owner_ids == {"owner"}
    assert wanting(connection) == []
    assert claim(connection, "owner").owner_ids == frozenset()
    pass_time(connection, 21 * HOUR)
    assert wanting(connection) == ["owner"]
    assert claim(connection, "owner").owner_ids == {"owner"}


def test_who_is_private_or_gone_is_asked_for_more_and_more_rarely(connection: sa.Connection) -> None:
    show(connection, "owner", -2 * DAY)
    days = []
    for refusal in [Refusal.PRIVATE, Refusal.GONE, Refusal.EMPTY, Refusal.PRIVATE, Refusal.GONE, Refusal.GONE]:
        claim(connection, "owner")
        note_answer(connection, INSTAGRAM, ALLOWANCE, "owner", refusal)
        days.append(next(day for day in range(1, 40) if _asked_after(connection, day)))
        pass_time(connection, 40 * DAY)
    assert days == [2, 4, 8, 16, 30, 30]


def _asked_after(connection: sa.Connection, days: int) -> bool:
    """Whether the owner would be asked for in the same night so many days later."""
    later = sa.text("SELECT next_ask_at <= clock_timestamp() + :days FROM cdn_provider_owners")
    return bool(connection.scalar(later, {"days": days * DAY}))


def test_an_answer_makes_up_for_earlier_refusals_and_an_outage_is_none(connection: sa.Connection) -> None:
    show(connection, "owner", -2 * DAY)
    for refusal in (Refusal.PRIVATE, None, Refusal.UNAVAILABLE):
        claim(connection, "owner")
        note_answer(connection, INSTAGRAM, ALLOWANCE, "owner", refusal)
        pass_time(connection, 2 * DAY)
        assert wanting(connection) == ["owner"]
    row = connection.execute(sa.text("SELECT answer, refusals FROM cdn_provider_owners")).one()
    assert tuple(row) == ("unavailable", 0)


# -- how much --


def test_no_more_is_asked_on_a_day_than_the_budget_allows(connection: sa.Connection) -> None:
    three = Allowance("decodo", per_day=3, per_second=1000.0)
    assert claim(connection, "a", "b", allowance=three).owner_ids == {"a", "b"}
    grant = claim(connection, "c", "d", allowance=three)
    assert (set(grant.owner_ids), grant.budget_left) == ({"c"}, 0)
    assert ask_again(connection, three, ["a"]).owner_ids == frozenset()
    assert budget_left(connection, three) == 0
    connection.execute(sa.text("UPDATE cdn_provider_usage SET day = day - 1"))
    assert budget_left(connection, three) == 3
    assert claim(connection, "d", allowance=three).owner_ids == {"d"}


def test_asking_again_counts_as_well(connection: sa.Connection) -> None:
    assert claim(connection, "a", "b").budget_left == 98
    assert ask_again(connection, ALLOWANCE, ["b"]).budget_left == 97


def test_whoever_comes_next_waits_until_the_rate_lets_him(connection: sa.Connection) -> None:
    slow = Allowance("decodo", per_day=100, per_second=0.01)
    assert claim(connection, "a", allowance=slow).wait_seconds == 0
    assert 100 < claim(connection, "b", "c", allowance=slow).wait_seconds + 1 <= 101
    assert 300 < claim(connection, "d", allowance=slow).wait_seconds + 1 <= 301


def test_runs_that_claim_at_once_share_owners_and_budget(catalog: sa.Engine) -> None:
    five = Allowance("decodo", per_day=5, per_second=1000.0)
    owners = [f"owner {number}" for number in range(4)]
    offers = [owners, owners[::-1], ["x", *owners], ["y", "z", *owners]]

    def one(offer: list[str]) -> Grant:
        work = partial(claim_owners, collection=INSTAGRAM, allowance=five, owner_ids=offer)
        return transaction(catalog, work)

    with ThreadPoolExecutor(4) as pool:
        grants = list(pool.map(one, offers))
    claimed = [owner for grant in grants for owner in grant.owner_ids]
    assert len(claimed) == len(set(claimed)) <= 5
    with catalog.connect() as connection:
        assert budget_left(connection, five) == 5 - len(claimed)


def test_a_refusal_by_the_provider_gives_back_what_came_to_nothing_and_is_remembered(
    connection: sa.Connection,
) -> None:
    show(connection, "a", HOUR)
    show(connection, "b", 2 * HOUR)
    claim(connection, "a", "b")
    note_answer(connection, INSTAGRAM, ALLOWANCE, "a", None)
    note_refused(connection, INSTAGRAM, ALLOWANCE, ["b"], "no such target")
    assert wanting(connection) == ["b"]
    usage = sa.text("SELECT requests, answered, refused FROM cdn_provider_usage")
    assert tuple(connection.execute(usage).one()) == (1, 1, "no such target")
    claim(connection, "b")
    note_answer(connection, INSTAGRAM, ALLOWANCE, "b", None)
    assert tuple(connection.execute(usage).one()) == (2, 2, None)


# -- out of turn: a user asks --


def claim_out_of_turn(connection: sa.Connection, *owners: str) -> Grant:
    return claim_owners(connection, INSTAGRAM, ALLOWANCE, owners, in_turn=False)


def test_a_question_out_of_turn_is_put_whatever_was_asked_before_and_takes_no_turn_away(
    connection: sa.Connection,
) -> None:
    assert claim_out_of_turn(connection, "new").owner_ids == {"new"}
    note_answer(connection, INSTAGRAM, ALLOWANCE, "new", Refusal.UNAVAILABLE, in_turn=False)
    assert claim(connection, "new").owner_ids == {"new"}
    assert claim(connection, "new").owner_ids == set()
    assert claim_out_of_turn(connection, "new").owner_ids == {"new"}
    assert budget_left(connection, ALLOWANCE) == 97


@pytest.mark.parametrize("refusal", Refusal)
def test_a_refusal_out_of_turn_is_not_held_against_the_owner(connection: sa.Connection, refusal: Refusal) -> None:
    for _ in range(5):
        claim_out_of_turn(connection, "owner")
        note_answer(connection, INSTAGRAM, ALLOWANCE, "owner", refusal, in_turn=False)
    assert claim(connection, "owner").owner_ids == {"owner"}


def test_an_answer_out_of_turn_leaves_the_night_its_question(connection: sa.Connection) -> None:
    claim_out_of_turn(connection, "owner")
    note_answer(connection, INSTAGRAM, ALLOWANCE, "owner", None, in_turn=False)
    assert claim(connection, "owner").owner_ids == {"owner"}


def test_half_of_a_days_budget_is_for_the_nights_whatever_users_ask(connection: sa.Connection) -> None:
    five = Allowance("decodo", per_day=5, per_second=1000.0)
    grant = claim_owners(connection, INSTAGRAM, five, ["a", "b", "c", "d"], in_turn=False)
    assert (set(grant.owner_ids), grant.budget_left) == ({"a", "b", "c"}, 0)
    assert ask_again(connection, five, ["a"], in_turn=False).owner_ids == frozenset()
    assert claim(connection, "a", "b", "c", allowance=five).owner_ids == {"a", "b"}


def test_who_has_no_time_to_wait_is_granted_nothing_and_spends_nothing(connection: sa.Connection) -> None:
    slow = Allowance("decodo", per_day=100, per_second=0.01)
    claim(connection, "a", allowance=slow)
    hurried = partial(claim_owners, connection, INSTAGRAM, slow, ["b"])
    for grant in (hurried(within_seconds=90.0), ask_again(connection, slow, ["a"], within_seconds=90.0)):
        assert (grant.owner_ids, grant.budget_left) == (frozenset(), 99)
        assert 90 < grant.wait_seconds <= 100
    assert hurried(within_seconds=110.0).owner_ids == {"b"}


@pytest.mark.parametrize("in_turn", [True, False])
def test_an_erased_owner_is_not_asked_for(connection: sa.Connection, in_turn: bool) -> None:
    show(connection, "erased", HOUR)
    claim(connection, "erased")
    take_down(connection, set_owner_tombstone(connection, INSTAGRAM, "erased"))
    grant = claim_owners(connection, INSTAGRAM, ALLOWANCE, ["erased", "owner"], in_turn=in_turn)
    assert grant.owner_ids == {"owner"}
    assert connection.scalars(sa.text("SELECT owner_id FROM cdn_provider_owners")).all() == ["owner"]


def test_a_provider_that_refuses_us_out_of_turn_gives_the_requests_back_and_leaves_turns_as_they_were(
    connection: sa.Connection,
) -> None:
    claim(connection, "owner")
    claim_out_of_turn(connection, "owner")
    note_refused(connection, INSTAGRAM, ALLOWANCE, ["owner"], "no", in_turn=False)
    assert budget_left(connection, ALLOWANCE) == 99
    assert claim(connection, "owner").owner_ids == set()


def test_who_was_private_or_gone_within_the_day_is_known_to_be(connection: sa.Connection) -> None:
    owners = [refusal.value for refusal in Refusal]
    claim(connection, *owners)
    for owner in owners:
        note_answer(connection, INSTAGRAM, ALLOWANCE, owner, Refusal(owner))
    lately = {"private": Refusal.PRIVATE, "gone": Refusal.GONE}
    assert refused_lately(connection, INSTAGRAM, [*owners, "never asked"]) == lately
    pass_time(connection, LATELY)
    assert refused_lately(connection, INSTAGRAM, owners) == {}
