"""`cdn status|off|on|percentage` do what they say, tell it, and `status` shows it."""

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.queue.audit import latest_actions, note_action
from cdn_pipeline.queue.delivery_policy import read_policy, set_percentage, switch_off, switch_on
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


def test_the_switchs_status_says_since_when_and_who_has_changed_it(invoke: Invoke, connection: sa.Connection) -> None:
    untouched = invoke("cdn", "status")
    assert (untouched.exit_code, "Nobody has ever changed that" in untouched.output) == (0, True)
    set_percentage(connection, "ada", 25)
    switch_off(connection, "bob", expires_in=timedelta(minutes=10))
    told = invoke("cdn", "status").output
    assert "The CDN is switched off" in told
    assert "back by itself in 9 min, then CDN URLs of 25 % of the profiles" in told
    off, percentage = told.split("Last changes")[1].splitlines()[2:4]
    assert ("bob" in off, "off until" in off) == (True, True)
    assert ("ada" in percentage, "percentage set to 25" in percentage) == (True, True)
    switch_on(connection, "carol")
    assert "The CDN is on: CDN URLs of 25 %" in invoke("cdn", "status").output


def test_what_else_operators_did_is_not_in_the_switchs_status(invoke: Invoke, connection: sa.Connection) -> None:
    note_action(connection, "ada", "retry", details={}, affected=1)
    assert "Nobody has ever changed that" in invoke("cdn", "status").output


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
