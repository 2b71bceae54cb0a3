"""Rounds: what holds now is written down, and whoever has to hear of it is told."""

from collections.abc import Sequence
from functools import partial
from platform import node

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.observe.alerts.book import (
    Place,
    claim_messages,
    evaluate,
    note_told,
    release_claims,
    renew_claims,
)
from cdn_pipeline.observe.alerts.facts import FactFinder
from cdn_pipeline.observe.alerts.machine import Alert, Severity
from cdn_pipeline.observe.alerts.messages import batches
from cdn_pipeline.observe.alerts.receivers import Receivers
from cdn_pipeline.observe.alerts.rules import LOCAL_RULES, NOTHING_EVALUATED, TIMINGS, Evaluation, evaluate_rules
from cdn_pipeline.observe.vitals import Vitals
from cdn_pipeline.settings import Settings


class Evaluator:
    """Plays rounds. Several may do so at once, and none tells what another has told.

    Who is killed in a round loses nothing: what fires is in the catalog before it is told, and what he had claimed is
    told by another after `book.CLAIM`.
    """

    def __init__(
        self, settings: Settings, catalog: sa.Engine, collection: Collection = INSTAGRAM, *, program: str = "api"
    ) -> None:
        """Knows the receivers. `program` is the one it runs in: with the machine's name it says from where it looks.

        Raises:
            ConfigurationError: ALERT_URLS holds a URL that apprise does not understand.
        """
        self.receivers = Receivers(settings.alert_urls)
        self.level = Severity(settings.alert_level)
        self._catalog = catalog
        self._place = Place(f"{program}@{node()}", LOCAL_RULES)
        self._finder = FactFinder(collection, settings.monthly_budget_usd)

    def evaluate(self, vitals: Vitals, also: Evaluation = NOTHING_EVALUATED) -> Sequence[Alert]:
        """Judges the vitals, writes down what holds, and tells it; returns the alerts of the rules that were judged.

        `also` is what the caller found by rules that do not look at the vitals. The catalog has to answer.
        """
        with self._catalog.connect() as connection:
            found = evaluate_rules(self._finder.find(connection, vitals)) | also
        write_down = partial(
            evaluate, conditions=found.conditions, timings=TIMINGS, judged=found.rules, place=self._place
        )
        alerts = transaction(self._catalog, write_down)
        self.tell_due()
        return alerts

    def tell_due(self) -> int:
        """Tells what is due to be told, whoever found it; returns how many messages that were.

        It takes half a minute at most. Each message is noted as soon as it is told, and what there was no time for is
        left to the next round, whoever plays it.
        """
        if not self.receivers.ids:
            return 0
        claimed = transaction(self._catalog, partial(claim_messages, timings=TIMINGS, level=self.level))
        telling, count = self.receivers.telling(), 0
        for batch in batches(claimed):
            if telling.is_over:
                transaction(self._catalog, partial(release_claims, messages=batch))
                continue
            ours = transaction(self._catalog, partial(renew_claims, messages=batch))
            for message, answers in zip(ours, telling.tell(ours), strict=True):
                transaction(self._catalog, partial(note_told, message=message, answers=answers))
            count += len(ours)
        return count
