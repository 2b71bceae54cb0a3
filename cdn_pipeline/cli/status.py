"""`cdn-pipeline status`: the state of the whole on one screen."""

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pydantic_core
from rich.console import Console
from rich.text import Text

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.sections import Fact, add_row, counted, new_table, print_facts, print_title
from cdn_pipeline.collections import INSTAGRAM, SHARD_COUNT
from cdn_pipeline.observe.health import CheckUp, Health, check_up
from cdn_pipeline.observe.overview import FreshUrls, Overview, look_over
from cdn_pipeline.observe.refreshes import Refreshes
from cdn_pipeline.observe.shares import in_percent
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.observe.thresholds import LOST_LATELY
from cdn_pipeline.observe.times import clock, distance, span
from cdn_pipeline.queue.delivery_policy import DeliveryPolicy
from cdn_pipeline.queue.erasures import list_erasures
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.rollout import RolloutStatus, rollout_status

_KINDS_SHOWN = 6  # with their advice as much as one screen has room for

_STYLES = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.UNHEALTHY: "red"}


def show_status(settings: Settings, console: Console, *, as_json: bool) -> bool:
    """Shows the state of the whole; returns whether it is healthy."""
    with open_catalog(settings) as engine, snapshot(engine) as now:
        overview = look_over(now, INSTAGRAM)
        rollouts = rollout_status(now.connection, INSTAGRAM)
        unfinished = len(list_erasures(now.connection, INSTAGRAM, unfinished=True))
    checked = check_up(overview)
    if as_json:
        print(_as_json(checked, overview, rollouts, unfinished))  # noqa: T201  # unwrapped and without colour
    else:
        _print(console, checked, overview, rollouts, unfinished, has_provider=settings.has_provider)
    return checked.health is Health.HEALTHY


def _as_json(checked: CheckUp, overview: Overview, rollouts: Sequence[RolloutStatus], unfinished: int) -> str:
    """One object; times in ISO 8601, spans in seconds."""
    facts: dict[str, Any] = {**dataclasses.asdict(checked), **dataclasses.asdict(overview), "rollouts": rollouts}
    facts["unfinished_erasures"] = unfinished
    return pydantic_core.to_json(facts, indent=2, timedelta_mode="float").decode()


def _print(
    console: Console,
    checked: CheckUp,
    overview: Overview,
    rollouts: Sequence[RolloutStatus],
    unfinished: int,
    *,
    has_provider: bool,
) -> None:
    headline = Text(f"{checked.health.capitalize()}: ", style=f"bold {_STYLES[checked.health]}")
    console.print(headline.append(f"{checked.words}.", style="not bold"))
    for finding in checked.findings:
        console.print(Text(f"→ {finding.first}", style=_STYLES[finding.health]))
    print_facts(
        console, f"{INSTAGRAM.name}, {clock(overview.now)}", _facts(overview, rollouts, unfinished, has_provider)
    )
    _print_queue(console, overview)
    _print_shut_hosts(console, overview)
    _print_failures(console, overview)
    _print_hours(console, overview)
    _print_runs(console, overview)


def _facts(
    overview: Overview, rollouts: Sequence[RolloutStatus], unfinished: int, has_provider: bool
) -> Iterator[Fact]:
    images = overview.images
    most_first = sorted(images.by_status.items(), key=lambda item: -item[1])
    counts = ", ".join(f"{count:,} {status}" for status, count in most_first if count)
    yield "images", f"{images.total:,}{f': {counts}' if counts else ''}"
    yield "published", f"{images.published:,} ({in_percent(images.published_share)})"
    yield "on our watch", _watch(overview)
    yield "deadlines", overview.feasibility.words
    last_day = overview.last_day
    yield "last 24 h", f"{counted(last_day.completed, 'image')} completed, {last_day.failed:,} failed or still retrying"
    yield "sources", _sources(overview)
    yield "fresh URLs", _fresh_urls(overview.fresh_urls, has_provider)
    if overview.refreshes.waiting or overview.refreshes.expired:
        yield "refreshes", _refreshes(overview.refreshes)
    if not overview.policy.is_everybody:
        yield "delivery", policy_words(overview.policy, overview.now)
    if unfinished:
        yield "erasures", Text(f"{unfinished:,} not finished: `cdn-pipeline erase` shows why", style="bold red")
    for rollout in rollouts:
        yield "rollout", rollout_words(rollout)


def _watch(overview: Overview) -> Text:
    watch = overview.watch
    style = "bold red" if watch.lost_lately else "yellow" if watch.lost else "green"
    lately = f" ({watch.lost_lately:,} in the last {span(LOST_LATELY)})" if watch.lost else ""
    lost = Text(f"{counted(watch.lost, 'image')} lost{lately}", style=style)
    return lost.append(f", {watch.arrived_dead:,} arrived dead", style="not bold default")


def _sources(overview: Overview) -> str:
    marks = overview.watermarks
    if marks.oldest is None:
        return "never read: run `publish_images`, or switch on the sensor"
    oldest = distance(marks.oldest, overview.now)
    full = distance(marks.last_full_scan, overview.now) if marks.last_full_scan else "never"
    return f"{marks.shards} of {SHARD_COUNT} shards read, the oldest {oldest}; last full scan {full}"


def _fresh_urls(fresh_urls: FreshUrls, has_provider: bool) -> Text:
    waiting = f"{counted(fresh_urls.waiting, 'image')} waiting for one"
    if not has_provider:
        return Text(f"{waiting}; no provider configured", style="yellow" if fresh_urls.waiting else "")
    if fresh_urls.refused:
        return Text(f"{waiting}; {fresh_urls.refused}", style="bold red")
    return Text(f"{waiting}; today {fresh_urls.answered_today:,} of {fresh_urls.asked_today:,} requests answered")


def _refreshes(refreshes: Refreshes) -> Text:
    oldest = f", the oldest for {span(refreshes.age)}" if refreshes.age else ""
    words = Text(f"{counted(refreshes.waiting, 'profile')} that users want fetched again{oldest}")
    if refreshes.expired:
        words.append(f"; no run came to {refreshes.expired:,} in the last hour", style="yellow")
    return words


def policy_words(policy: DeliveryPolicy, now: datetime) -> Text:
    """Whose pictures frontends are given CDN URLs of, on one line."""
    if policy.off_since is None:
        return Text(f"CDN URLs of {policy.percentage} % of the profiles")
    back = f"back by itself {distance(policy.off_until, now)}" if policy.off_until else "`cdn-pipeline cdn on` ends it"
    words = f"switched off {distance(policy.off_since, now)}; {back}, then CDN URLs of {policy.percentage} %"
    return Text(f"{words} of the profiles", style="bold yellow")


def rollout_words(rollout: RolloutStatus) -> str:
    """How far a rollout is, on one line."""
    state = "paused, " if rollout.paused else ""
    return (
        f"{rollout.recipe} v{rollout.version}: {state}{rollout.done:,} of {rollout.total:,} done, "
        f"{rollout.open:,} open, {rollout.held:,} on hold, {rollout.failed:,} failed"
    )


def _print_queue(console: Console, overview: Overview) -> None:
    if not overview.queue:
        print_title(console, "The queue is empty")
        return
    print_title(console, "Queue")
    counts = ("priority", "due", "retry later", "in hand", "on hold")
    table = new_table("priority", "due", "oldest", "retry later", "next", "in hand", "on hold", numbers=counts)
    for line in overview.queue:
        oldest = span(overview.now - line.due_since) if line.due_since else None
        attempt = distance(line.next_attempt_at, overview.now) if line.next_attempt_at else None
        add_row(table, line.priority, line.due, oldest, line.retry_later, attempt, line.in_hand, line.held)
    console.print(table)
    if any(line.held for line in overview.queue):
        console.print("  `cdn-pipeline queue restore` lets go what is on hold.")


def _print_shut_hosts(console: Console, overview: Overview) -> None:
    if not overview.shut_hosts:
        return
    print_title(console, "Hosts with an open breaker")
    table = new_table("host", "since", "asked again", "failure", "images behind it", numbers=("images behind it",))
    for host in overview.shut_hosts:
        due = host.retry_at <= overview.now
        again = "by the next run" if due else distance(host.retry_at, overview.now)
        add_row(table, host.host, distance(host.opened_at, overview.now), again, host.failure, host.images)
    console.print(table)


def _print_failures(console: Console, overview: Overview) -> None:
    if not overview.failures:
        return
    print_title(console, "Images that are not completed, by failure")
    table = new_table("kind", "images", "for good", "look at", "advice", numbers=("images", "for good"))
    for line in overview.failures[:_KINDS_SHOWN]:
        add_row(table, line.kind, line.images, line.failed_for_good, line.blame, line.advice)
    console.print(table)
    if len(overview.failures) > _KINDS_SHOWN:
        console.print(f"  and {counted(len(overview.failures) - _KINDS_SHOWN, 'kind')} more: --json")


def _print_hours(console: Console, overview: Overview) -> None:
    if not overview.hours:
        return
    print_title(console, "Last hours")
    columns = ("hour (UTC)", "processed", "failed", "success", "images/s", "peak queue", "utilization")
    table = new_table(*columns, numbers=columns[1:])
    for line in overview.hours:
        success = in_percent(line.success_rate) if line.success_rate is not None else None
        speed, utilization = f"{line.jobs_per_second:.1f}", f"{line.worker_utilization_percent}%"
        hour = f"{line.start:%m-%d %H:%M}"
        add_row(table, hour, line.jobs_processed, line.jobs_failed, success, speed, line.peak_queue_depth, utilization)
    console.print(table)


def _print_runs(console: Console, overview: Overview) -> None:
    if not overview.runs:
        print_title(console, "No run is working")
        return
    print_title(console, "Runs")
    table = new_table("run", "on", "started", "in hand", "shards", "", numbers=("in hand",))
    for line in overview.runs:
        shards = " ".join(line.shards[:4]) + ("…" if len(line.shards) > 4 else "")
        gone = None if line.lives else "gone; the next run takes over"
        add_row(table, line.run_id, line.worker_id, distance(line.started_at, overview.now), line.images, shards, gone)
    console.print(table)
