"""The placeholder that the catalog has is always that of the visible picture, or none."""

from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.outcomes import Outcome, Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    advanced,
    image,
    outcome,
    publish,
    published,
    reference,
    see,
    session,
    source_url,
    take_one,
    visible,
)

A, B = "LEHV6nWB2yk8pyo0adR*.7kCMdnj", "LGF5]+Yk^6#M@-5c,1J5@[or[Q6."
LATER = reference(source_url(picture="B"))


def of_a(attempt: Outcome) -> Outcome:
    return replace(attempt, placeholder=A)


def of_b(attempt: Outcome) -> Outcome:
    return replace(attempt, placeholder=B)


def publish_a(connection: sa.Connection) -> None:
    see(connection, reference(age=timedelta(hours=3)))
    settle(connection, RUN, [of_a(published(take_one(connection)))])
    assert image(connection)["placeholder"] == A


def test_a_placeholder_comes_with_its_picture(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        publish_a(connection)
        see(connection, LATER)
        settle(connection, RUN, [of_b(published(take_one(connection), "b", "B"))])
        assert image(connection)["placeholder"] == B


def test_an_image_that_was_only_encoded_has_none_until_it_is_published(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        settle(connection, RUN, [of_a(advanced(take_one(connection)))])
        assert image(connection)["placeholder"] is None
        settle(connection, RUN, [of_a(outcome(take_one(connection), Verdict.PUBLISHED, Stage.PUBLISH))])
        assert image(connection)["placeholder"] == A


def test_a_picture_that_waits_for_publication_leaves_the_visible_ones_placeholder(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        publish_a(connection)
        see(connection, LATER)
        settle(connection, RUN, [of_b(advanced(take_one(connection), "b", "B"))])
        assert image(connection)["placeholder"] == A


def test_a_new_picture_of_unknown_placeholder_has_none_rather_than_the_old_one(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        publish_a(connection)
        see(connection, LATER)
        settle(connection, RUN, [advanced(take_one(connection), "b", "B")])
        settle(connection, RUN, [outcome(take_one(connection), Verdict.PUBLISHED, Stage.PUBLISH)])
        assert visible(connection) != (None, None)
        assert image(connection)["placeholder"] is None


def test_what_is_published_again_of_the_same_original_keeps_it(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        publish_a(connection)
        connection.execute(
            sa.text("UPDATE cdn_image_jobs SET status = 'queued', completed_at = NULL, stage = 'encode'")
        )
        settle(connection, RUN, [published(take_one(connection), "encoded anew")])
        assert image(connection)["placeholder"] == A


@pytest.mark.parametrize("verdict", sorted(set(Verdict) - {Verdict.PUBLISHED}))
def test_no_other_end_of_an_attempt_changes_it(catalog: sa.Engine, verdict: Verdict) -> None:
    with session(catalog) as connection:
        publish_a(connection)
        see(connection, LATER)
        settle(connection, RUN, [of_b(outcome(take_one(connection), verdict, failure=FailureKind.SOURCE_GONE))])
        assert image(connection)["placeholder"] == A


def test_a_picture_that_was_in_between_leaves_none_behind(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        publish_a(connection)
        see(connection, reference(source_url(picture="B"), age=timedelta(hours=2)))
        between = take_one(connection)
        see(connection, reference(source_url("again"), age=timedelta(hours=1)))
        settle(connection, RUN, [of_b(published(between, "b", "B"))])
        assert image(connection)["placeholder"] == A


def test_an_image_that_had_none_gets_it_when_it_is_encoded_again(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        publish(connection)
        assert image(connection)["placeholder"] is None
        connection.execute(
            sa.text("UPDATE cdn_image_jobs SET status = 'queued', completed_at = NULL, stage = 'encode'")
        )
        settle(connection, RUN, [of_a(published(take_one(connection)))])
        assert image(connection)["placeholder"] == A
