"""Parts are judged one by one, and the whole is as well as the worst of those that count."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.observe.health import Health, PartName
from cdn_pipeline.observe.monitor import monitoring
from cdn_pipeline.observe.parts import Part, parts, whole
from cdn_pipeline.observe.probes import Delivery
from cdn_pipeline.observe.thresholds import (
    CACHE_HIT_RATIO_INFO,
    DISK_USED_ERROR,
    DISK_USED_WARNING,
    MINIMUM_PROBES,
    PROBES_STALE,
)
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.observe.vitals import Disk, Vitals
from cdn_pipeline.settings import Settings


@pytest.fixture
def vitals(settings: Settings, catalog: sa.Engine) -> Vitals:
    """Of an empty catalog, and all is well."""
    with monitoring(settings, catalog) as monitor:
        return replace(monitor.vitals(60), disk=None)


def part(vitals: Vitals, name: PartName) -> Part:
    return next(each for each in parts(vitals) if each.name is name)


def probed(*, broken: int = 0, in_time: float = 1.0) -> Delivery:
    return Delivery(datetime.now(UTC), MINIMUM_PROBES, broken, (), None, None, None, None, in_time, None)


def long_ago(*, broken: int) -> Delivery:
    return replace(probed(broken=broken), probed_at=datetime.now(UTC) - PROBES_STALE - timedelta(minutes=1))


def broken(vitals: Vitals, measurement: str) -> Vitals:
    unmeasurable = {measurement: "could not be measured: ValueError: what is this"}
    return replace(vitals, **{measurement: None}, unmeasurable=unmeasurable)  # type: ignore[arg-type]


def disk(used: float) -> Disk:
    return Disk("/somewhere", total=1000, free=round(1000 * (1 - used)))


def test_of_an_empty_catalog_every_part_is_well_and_nothing_is_to_do(vitals: Vitals) -> None:
    found = parts(vitals)
    assert {each.health for each in found} == {Health.HEALTHY}
    assert {each.first for each in found} == {""}
    assert all(each.words for each in found)
    assert [each.name for each in found] == [name for name in PartName if name in {each.name for each in found}]


@pytest.mark.parametrize(
    ("change", "name", "health"),
    [
        (lambda vitals: replace(vitals, delivery=probed()), PartName.DELIVERY, Health.HEALTHY),
        (lambda vitals: replace(vitals, delivery=probed(broken=1)), PartName.DELIVERY, Health.UNHEALTHY),
        (lambda vitals: replace(vitals, delivery=probed(in_time=0.5)), PartName.DELIVERY, Health.DEGRADED),
        (lambda vitals: replace(vitals, disk=disk(DISK_USED_WARNING)), PartName.DISK, Health.HEALTHY),
        (lambda vitals: replace(vitals, disk=disk(DISK_USED_WARNING + 0.01)), PartName.DISK, Health.DEGRADED),
        (lambda vitals: replace(vitals, disk=disk(DISK_USED_ERROR + 0.01)), PartName.DISK, Health.UNHEALTHY),
        (lambda vitals: replace(vitals, delivery=long_ago(broken=1)), PartName.DELIVERY, Health.DEGRADED),
        (lambda vitals: replace(vitals, overview=None), PartName.QUEUE, Health.DEGRADED),  # it takes long
        (lambda vitals: broken(vitals, "overview"), PartName.QUEUE, Health.DEGRADED),
        (lambda vitals: broken(vitals, "workers"), PartName.WORKERS, Health.DEGRADED),
        (lambda vitals: broken(vitals, "figures"), PartName.PIPELINE, Health.DEGRADED),
        (lambda vitals: broken(vitals, "storage"), PartName.PIPELINE, Health.DEGRADED),
        (lambda vitals: broken(vitals, "delivery"), PartName.DELIVERY, Health.DEGRADED),
    ],
)
def test_a_part_decides_over_the_whole(
    vitals: Vitals, change: Callable[[Vitals], Vitals], name: PartName, health: Health
) -> None:
    changed = change(vitals)
    assert part(changed, name).health is health
    assert whole(parts(changed)) is health
    assert bool(part(changed, name).first) == (health is not Health.HEALTHY)


def test_a_cache_that_misses_is_told_and_makes_nobody_ill(vitals: Vitals) -> None:
    assert part(vitals, PartName.CACHE).words == "Cloudflare's figures are not configured"
    cold = replace(vitals, traffic=Traffic(hit_ratio=CACHE_HIT_RATIO_INFO - 0.01))
    assert part(cold, PartName.CACHE).health is Health.DEGRADED
    assert part(cold, PartName.CACHE).informs
    assert whole(parts(cold)) is Health.HEALTHY
    assert part(replace(vitals, traffic=Traffic(hit_ratio=1.0)), PartName.CACHE).health is Health.HEALTHY


def test_what_cannot_be_measured_is_told_as_that_and_not_as_slow(vitals: Vitals) -> None:
    queue = part(broken(vitals, "overview"), PartName.QUEUE)
    assert queue.words == "could not be measured: ValueError: what is this"
    assert queue.section == "cannot_be_measured"
    assert "takes long" in part(replace(vitals, overview=None), PartName.QUEUE).words


def test_probes_of_long_ago_are_told_by_their_age_alone(vitals: Vitals) -> None:
    words = part(replace(vitals, delivery=long_ago(broken=1)), PartName.DELIVERY).words
    assert words == "published URLs were last probed 3 h ago, more than 3 h"
