"""Receivers: their tokens never show, and what they answer is known."""

import logging
from collections.abc import Iterator
from io import StringIO

import pytest
from pydantic import SecretStr

from cdn_pipeline.observe.alerts.machine import Severity
from cdn_pipeline.observe.alerts.messages import Letter
from cdn_pipeline.observe.alerts.receivers import Receivers
from cdn_pipeline.settings import ConfigurationError
from cdn_pipeline_tests.observe.alerts.receiver import SECRET, Webhook

LETTER = Letter("[test] title", "body", Severity.INFO)


def test_without_a_url_there_is_nobody() -> None:
    assert Receivers(None).ids == frozenset()


def test_a_letter_arrives_as_it_is(webhook: Webhook) -> None:
    assert list(Receivers(webhook.urls).test(LETTER).values()) == [None]
    assert webhook.arrived == [("[test] title", "body")]


@pytest.mark.parametrize("url", ["nosuchservice://token-of-somebody", "token-of-somebody", "slack://token-of-somebody"])
def test_a_url_that_is_none_is_refused_without_being_shown(url: str, webhook: Webhook) -> None:
    with pytest.raises(ConfigurationError, match="ALERT_URLS: number 2") as refusal:
        Receivers(SecretStr(f"{webhook.url} {url}"))
    assert "token-of-somebody" not in str(refusal.value)


@pytest.fixture
def logged() -> Iterator[StringIO]:
    """What reaches a log of everything. (`caplog` listens to loggers that keep what they say to themselves as well.)"""
    log = StringIO()
    handler, root = logging.StreamHandler(log), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield log
    root.setLevel(level)
    root.removeHandler(handler)


def test_nothing_that_is_logged_or_told_shows_a_token(webhook: Webhook, logged: StringIO) -> None:
    webhook.is_down = True
    receivers = Receivers(SecretStr(f"{webhook.url} json://somebody:password-of-him@127.0.0.1:1/{SECRET}"))
    answers = receivers.test(LETTER)
    with pytest.raises(ConfigurationError):
        Receivers(SecretStr(f"slack://{SECRET}"))
    logging.getLogger(__name__).debug("the log is listened to")
    assert set(answers) == {"1 (JSON)", "2 (JSON)"}
    assert all(answers.values())
    assert "the log is listened to" in logged.getvalue()
    for shown in (logged.getvalue(), repr(answers), repr(receivers._receivers)):
        assert SECRET not in shown
        assert "password-of-him" not in shown
