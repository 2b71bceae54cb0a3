"""Shards: every image counts once, in its own."""

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.shards import shard_states
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline_tests.queue.catalogs import RUN, outcome, published, reference, register, see, session, take


def test_every_shard_tells_its_images_and_what_is_left_to_do(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        register(connection, RUN)
        see(
            connection,
            reference(image="1", shard="00"),
            reference(image="2", shard="00"),
            reference(image="3", shard="3f"),
        )
        good, bad, other = sorted(take(connection), key=lambda job: job.shard)
        settle(
            connection,
            RUN,
            [published(good), outcome(bad, Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT), published(other)],
        )
        see(connection, reference(image="4", shard="3f"))
        states = shard_states(connection, INSTAGRAM)
    assert [state.shard for state in states] == list(SHARDS)
    told = {s.shard: (s.images, s.published, s.due, s.failed) for s in states if s.images}
    assert told == {"00": (2, 1, 0, 1), "3f": (2, 1, 1, 0)}
    assert {s.shard: s.unpublished_share for s in states}["00"] == 0.5
