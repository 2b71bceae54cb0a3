"""What Dagster's daemon does, in this process and one run after the other: sensor ticks, schedules, their runs.

It keeps to the daemon's rules where they matter here: a run key is honoured once, and of the times that a schedule has
missed only the last one is made up for (in Dagster 1.13 that holds for every schedule, partitioned or not).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._utils.schedules import schedule_execution_time_iterator
from dagster_shared.error import SerializableErrorInfo

_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check that did not pass, of a whole run."""

    moment: datetime
    name: str
    severity: str
    words: str


@dataclass(slots=True)
class Record:
    """What the daemon did. Runs are counted by sensor or schedule; `broken` are runs that failed without a check."""

    looks: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    failed_runs: Counter[str] = field(default_factory=Counter)
    failed_checks: list[FailedCheck] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Daemon:
    """Looks when it is told to; `definitions` are the project's own."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance, since: datetime) -> None:
        """`since` is when schedules were switched on."""
        self.record = Record()
        self._definitions = definitions
        self._instance = instance
        repository = definitions.get_repository_def()
        self._sensors = [each for each in repository.sensor_defs if each.targets]  # the others start no runs
        self._kept_until = dict.fromkeys(repository.schedule_defs, since)
        self._run_keys: set[tuple[str, str]] = set()

    def keep_schedules(self, now: datetime) -> None:
        """Launches what schedules have for the times since the last look."""
        for schedule, since in self._kept_until.items():
            missed = list(_times(schedule, since, now))
            if missed:
                self._keep(schedule, missed[-1])
                self._kept_until[schedule] = missed[-1] + timedelta(seconds=1)

    def _keep(self, schedule: dg.ScheduleDefinition, moment: datetime) -> None:
        context = dg.build_schedule_context(
            instance=self._instance,
            scheduled_execution_time=moment,
            repository_def=self._definitions.get_repository_def(),
        )
        requests = schedule.evaluate_tick(context).run_requests or ()
        tags = {"dagster/schedule_name": schedule.name}
        self._launch(schedule.name, schedule.job_name, requests, tags)

    def ask_sensors(self) -> None:
        """Evaluates every sensor once and launches what it asks for."""
        self.record.looks += 1
        for sensor in self._sensors:
            with dg.build_sensor_context(instance=self._instance, definitions=self._definitions) as context:
                requests = sensor.evaluate_tick(context).run_requests or ()
            self._launch(sensor.name, sensor.job_name, requests, {"dagster/sensor_name": sensor.name})

    def _launch(self, name: str, job: str | None, requests: Sequence[dg.RunRequest], tags: dict[str, str]) -> None:
        for request in requests:
            key = request.run_key
            if (name, key) not in self._run_keys:
                key_tags = {"dagster/run_key": key} if key else {}
                self._execute(name, request.job_name or job or "", request, {**tags, **key_tags})
            if key:
                self._run_keys.add((name, key))

    def _execute(self, name: str, job: str, request: dg.RunRequest, tags: dict[str, str]) -> None:
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self._instance,
            tags={**request.tags, **tags},
            run_config={**request.run_config, "loggers": _QUIET},
            raise_on_error=False,
        )
        if _was_interrupted(result):  # Dagster takes the signal for the end of one run
            raise KeyboardInterrupt
        failed_checks = list(_failed_checks(result))
        self.record.runs[name] += 1
        self.record.failed_checks += failed_checks
        if not result.success:
            self.record.failed_runs[name] += 1
            if not any(check.severity == "ERROR" for check in failed_checks):
                self.record.broken.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M} {name}: {_reason(result)}")


def _times(schedule: dg.ScheduleDefinition, since: datetime, now: datetime) -> Iterator[datetime]:
    zone = schedule.execution_timezone or "UTC"
    for moment in schedule_execution_time_iterator(since.timestamp(), schedule.cron_schedule, zone):
        if moment > now:
            return
        yield moment


def _failed_checks(result: dg.ExecuteInProcessResult) -> Iterator[FailedCheck]:
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.partition is None:
            yield FailedCheck(datetime.now(UTC), check.check_name, check.severity.value, check.description or "")


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    return any(error.cls_name == dg.DagsterExecutionInterruptedError.__name__ for error in _errors(result))


def _reason(result: dg.ExecuteInProcessResult) -> str:
    return "; ".join((error.cause or error).message.strip() for error in _errors(result))


def _errors(result: dg.ExecuteInProcessResult) -> Iterator[SerializableErrorInfo]:
    for event in result.get_step_failure_events():
        if error := event.step_failure_data.error:
            yield error
