"""Fixtures of the alerts' tests."""

from collections.abc import Iterator

import pytest

from cdn_pipeline_tests.observe.alerts.receiver import Webhook, running_webhook


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A receiver that takes what it is sent."""
    with running_webhook() as webhook:
        yield webhook
