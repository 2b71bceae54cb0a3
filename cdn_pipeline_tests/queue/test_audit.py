import sqlalchemy as sa

from cdn_pipeline.queue.audit import latest_actions, note_action


def test_what_was_done_is_told_the_latest_first(catalog: sa.Engine) -> None:
    for number in range(3):
        with catalog.begin() as connection:
            note_action(connection, "ada", "queue-clear", details={"number": number}, affected=number)
    with catalog.connect() as connection:
        found = latest_actions(connection, 2)
    assert [(each.actor, each.action, each.details, each.affected) for each in found] == [
        ("ada", "queue-clear", {"number": 2}, 2),
        ("ada", "queue-clear", {"number": 1}, 1),
    ]


def test_what_was_not_done_is_not_told(catalog: sa.Engine) -> None:
    with catalog.connect() as connection:
        note_action(connection, "ada", "queue-clear", details={}, affected=1)
        connection.rollback()
        assert not latest_actions(connection, 10)
