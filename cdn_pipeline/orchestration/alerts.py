"""Alerts in Dagster's daemon: the rules, every 30 s, and what Dagster alone knows of runs and checks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.orchestration import checks, standing_checks
from cdn_pipeline.orchestration.assets.delivery import no_published_url_is_broken, urls_answer_within_150_ms
from cdn_pipeline.orchestration.assets.stats import mean_processing_time
from cdn_pipeline.orchestration.kept_open import KeptOpen

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cdn_pipeline.observe.alerts.rounds import Evaluator
    from cdn_pipeline.observe.alerts.rules import Evaluation
    from cdn_pipeline.observe.alerts.signals import Signal
    from cdn_pipeline.observe.monitor import Monitor
    from cdn_pipeline.settings import Settings

RUNS_ARE_NEWS = timedelta(days=2)  # the job that runs least often runs every day


def _names(*found: dg.AssetChecksDefinition) -> list[str]:
    return [spec.name for each in found for spec in each.check_specs]


# A vitals' rule tells the same: one cause, one alert.
_TOLD_BY_RULES = frozenset(
    {
        checks.success_rate,
        standing_checks.NO_IMAGE_LOST,
        standing_checks.DEADLINES_CAN_BE_KEPT,
        standing_checks.NO_HOST_LEFT_ALONE,
        *_names(mean_processing_time, no_published_url_is_broken, urls_answer_within_150_ms),
    }
)

_UNEVALUATED = 10  # runs of the same checks at once, and some that were killed

# A tick may wait so long for the overview: a few seconds for a million images. Dagster gives it 60 s.
_PATIENCE_SECONDS = 30.0


@dg.sensor(
    minimum_interval_seconds=30,
    jobs=[],
    description="Evaluates the alerts' rules, failed runs and failed checks, and tells the services in ALERT_URLS "
    "what is wrong, once, and when it is over. Starts no run.",
)
def alerts_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Looks at the vitals and at Dagster's records."""
    return dg.SkipReason(_look(dagster_conditions(context.instance, context.repository_def)))


def dagster_conditions(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition | None) -> "Evaluation":
    """The jobs whose last run failed, and the checks whose last evaluation is an error."""
    from cdn_pipeline.observe.alerts.rules import Evaluation, as_conditions

    if repository is None:
        return Evaluation(frozenset(), ())
    runs = as_conditions("run_failed", _failed_runs(instance, repository))
    checks = as_conditions("check_failed", _failed_checks(instance, repository))
    return Evaluation(frozenset({"run_failed", "check_failed"}), (*runs, *checks))


def _failed_runs(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> "Iterator[Signal]":
    from cdn_pipeline.observe.alerts.machine import Severity
    from cdn_pipeline.observe.alerts.signals import Signal

    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    since = datetime.now(UTC) - RUNS_ARE_NEWS
    for job in repository.job_names:
        if job.startswith("__"):  # what somebody materializes in the UI is under his eyes
            continue
        runs = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=ended, updated_after=since), limit=1)
        for record in runs:
            if record.dagster_run.status is dg.DagsterRunStatus.FAILURE:
                words = f"the last run of {job} failed ({record.dagster_run.run_id})"
                yield Signal(Severity.CRITICAL, words, job)


def _failed_checks(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> "Iterator[Signal]":
    from cdn_pipeline.observe.alerts.machine import Severity
    from cdn_pipeline.observe.alerts.signals import Signal

    for key in sorted(repository.asset_graph.asset_check_keys):
        if key.name in _TOLD_BY_RULES:
            continue
        evaluation = _latest_evaluation(instance, key)
        if evaluation and not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR:
            subject = f"{key.asset_key.to_user_string()}:{key.name}"
            yield Signal(Severity.CRITICAL, evaluation.description or f"{subject} failed", subject)


def _latest_evaluation(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dg.AssetCheckEvaluation | None:
    """After it there may be runs that have only planned to evaluate the check, or never did."""
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=_UNEVALUATED)
    found = (record.evaluation for record in records)  # of one that is only planned, the plan, whatever its type says
    return next((each for each in found if isinstance(each, dg.AssetCheckEvaluation)), None)


@dataclass(frozen=True, slots=True)
class _Alerting:
    """What evaluating needs."""

    catalog: "sa.Engine"
    monitor: "Monitor"
    evaluator: "Evaluator"


@contextmanager
def _open_alerting(settings: "Settings") -> Iterator[_Alerting]:
    from cdn_pipeline.catalog.sessions import open_catalog
    from cdn_pipeline.engine.due_work import catalog_answers
    from cdn_pipeline.observe.alerts.rounds import Evaluator
    from cdn_pipeline.observe.monitor import monitoring

    with ExitStack() as stack:
        with catalog_answers():
            catalog = stack.enter_context(open_catalog(settings))
            monitor = stack.enter_context(monitoring(settings, catalog, INSTAGRAM))
            evaluator = Evaluator(settings, catalog, INSTAGRAM, program="daemon")
        yield _Alerting(catalog, monitor, evaluator)


_alerting = KeptOpen(_open_alerting)


def _look(found: "Evaluation") -> str:
    """Evaluates and tells; returns how many alerts fire, in words.

    Raises:
        ConfigurationError: the environment is incomplete or contradicts itself, or ALERT_URLS is no URL.
        DatabaseUnreachableError: the catalog does not answer.
    """
    from cdn_pipeline.engine.due_work import catalog_answers
    from cdn_pipeline.observe.alerts.machine import State
    from cdn_pipeline.queue.heartbeats import beat

    with _alerting.in_use() as alerting, catalog_answers():
        with alerting.catalog.begin() as connection:
            beat(connection, alerts_sensor.name)
        alerts = alerting.evaluator.evaluate(alerting.monitor.vitals(_PATIENCE_SECONDS), found)
    return f"alerts that fire: {sum(alert.state is State.FIRING for alert in alerts)}"
