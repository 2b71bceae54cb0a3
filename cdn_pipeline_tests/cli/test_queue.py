"""`queue hold` and `queue restore`: jobs leave the reach of runs, and come back."""

import sqlalchemy as sa

from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import reference, see, take


def fill(connection: sa.Connection) -> None:
    see(connection, reference(image="1", shard="00"), reference(image="2", shard="01"))
    see(connection, reference(image="3", shard="01", source_type="post_thumbnail"))


def test_what_is_on_hold_is_not_due_until_it_is_restored(invoke: Invoke, connection: sa.Connection) -> None:
    fill(connection)
    held = invoke("queue", "hold", "--yes")
    assert (held.exit_code, "3 jobs on hold" in held.output) == (0, True)
    assert take(connection) == []
    restored = invoke("queue", "restore")
    assert (restored.exit_code, "3 jobs back" in restored.output) == (0, True)
    assert len(take(connection)) == 3


def test_shards_and_priorities_may_be_chosen(invoke: Invoke, connection: sa.Connection) -> None:
    fill(connection)
    assert "1 job " in invoke("queue", "hold", "--yes", "--shard", "01", "--priority", "4").output
    assert "1 job " in invoke("queue", "hold", "--yes", "--shard", "00").output
    assert [job.source_id for job in take(connection)] == ["2"]
    assert "2 jobs" in invoke("queue", "restore", "--shard", "00", "--shard", "01").output


def test_nothing_is_held_without_a_yes(invoke: Invoke, connection: sa.Connection) -> None:
    fill(connection)
    assert invoke("queue", "hold", answer="n\n").exit_code == 1
    assert invoke("queue", "hold").exit_code == 1
    assert "3 jobs" in invoke("queue", "hold", answer="y\n").output
    assert take(connection) == []


def test_a_shard_or_priority_that_does_not_exist_is_refused(invoke: Invoke) -> None:
    assert invoke("queue", "hold", "--yes", "--shard", "zz").exit_code == 2
    assert invoke("queue", "restore", "--priority", "11").exit_code == 2
