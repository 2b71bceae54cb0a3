from datetime import timedelta

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.queue.watermarks import advance_watermarks, forget_watermarks, read_watermarks
from cdn_pipeline.sources.changes import Watermark
from cdn_pipeline_tests.queue.catalogs import NOW, only


def at(minutes: int, rows: int = 0) -> Watermark:
    return Watermark(NOW + timedelta(minutes=minutes), rows)


def test_a_shard_has_no_watermark_before_it_was_read(connection: sa.Connection) -> None:
    assert read_watermarks(connection, INSTAGRAM) == {}


def test_watermarks_are_kept_by_shard(connection: sa.Connection) -> None:
    advance_watermarks(connection, INSTAGRAM, {"00": at(0, 1), "3f": at(1)})
    advance_watermarks(connection, INSTAGRAM, {"00": at(2, 3)})
    assert read_watermarks(connection, INSTAGRAM) == {"00": at(2, 3), "3f": at(1)}


def test_watermarks_that_are_forgotten_are_as_if_they_had_never_been(connection: sa.Connection) -> None:
    advance_watermarks(connection, INSTAGRAM, {"00": at(0)})
    forget_watermarks(connection, INSTAGRAM)
    assert read_watermarks(connection, INSTAGRAM) == {}


marks = st.builds(at, st.integers(-3, 3), st.integers(0, 5))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(marks, min_size=1))
def test_a_watermark_never_goes_back_and_keeps_its_own_count(connection: sa.Connection, scans: list[Watermark]) -> None:
    connection.execute(sa.text("TRUNCATE cdn_source_watermarks"))
    for mark in scans:
        advance_watermarks(connection, INSTAGRAM, {"00": mark})
    kept = read_watermarks(connection, INSTAGRAM)["00"]
    latest = max(mark.scanned_at for mark in scans)
    assert kept == next(mark for mark in scans if mark.scanned_at == latest)


def test_only_a_scan_of_everything_says_so(connection: sa.Connection) -> None:
    def fully_scanned_at() -> object:
        return only(connection, "cdn_source_watermarks")["fully_scanned_at"]

    advance_watermarks(connection, INSTAGRAM, {"00": at(0)})
    assert fully_scanned_at() is None
    advance_watermarks(connection, INSTAGRAM, {"00": at(1)}, every_row=True)
    complete = fully_scanned_at()
    assert complete
    advance_watermarks(connection, INSTAGRAM, {"00": at(2)})
    assert fully_scanned_at() == complete


def test_a_watermark_of_the_future_gives_way_to_the_source_whose_clock_is_right(connection: sa.Connection) -> None:
    ahead = Watermark(at(0).scanned_at + timedelta(hours=2), 7)
    for mark in (ahead, at(0, 1)):
        advance_watermarks(connection, INSTAGRAM, {"00": mark})
    assert read_watermarks(connection, INSTAGRAM) == {"00": at(0, 1)}
