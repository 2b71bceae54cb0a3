"""`cdn off|on|percentage` do what they say, tell it, and `status` shows it."""

import json

import pytest
import sqlalchemy as sa

from cdn_pipeline.queue.audit import latest_actions
from cdn_pipeline.queue.delivery_policy import read_policy
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import publish, reference, see


def test_off_and_on_again_are_told_and_audited(invoke: Invoke, connection: sa.Connection) -> None:
    result = invoke("cdn", "off")
    assert result.exit_code == 0, result.output
    assert "`cdn-pipeline cdn on` ends it" in result.output
    assert not read_policy(connection).is_on
    assert "CDN URLs of 100 % of the profiles" in invoke("cdn", "on").output
    assert read_policy(connection).is_on
    assert [entry.action for entry in latest_actions(connection, 9)] == ["cdn-on", "cdn-off"]


def test_off_for_some_minutes_says_when_it_is_over(invoke: Invoke, connection: sa.Connection) -> None:
    assert "back by itself in 9 min" in invoke("cdn", "off", "--minutes", "10").output
    assert read_policy(connection).off_until


def test_a_percentage_is_kept_and_others_are_refused(invoke: Invoke, connection: sa.Connection) -> None:
    assert "CDN URLs of 25 % of the profiles" in invoke("cdn", "percentage", "25").output
    assert read_policy(connection).percentage == 25
    assert invoke("cdn", "percentage", "101").exit_code == 2


@pytest.mark.parametrize(("command", "words"), [(("off",), "switched off"), (("percentage", "25"), "25 %")])
def test_status_shows_it(invoke: Invoke, connection: sa.Connection, command: tuple[str, ...], words: str) -> None:
    see(connection, reference())
    publish(connection)
    assert "delivery" not in invoke("status").output
    invoke("cdn", *command)
    result = invoke("status")
    assert words in result.output
    assert result.exit_code == (1 if command == ("off",) else 0)
    assert json.loads(invoke("status", "--json").output)["policy"]["percentage"]
