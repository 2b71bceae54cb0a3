"""What Dagster knows of this project, as plain expectations; and what importing it costs and touches."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster import AssetCheckKey, AssetKey

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.definitions import build_defs, defs
from cdn_pipeline.orchestration.resources import MirrorResource

GRAPH = {
    "profiles": set[str](),
    "posts": set[str](),
    "source_images": {"profiles", "posts"},
    "original_images": {"source_images"},
    "image_renditions": {"original_images"},
    "published_images": {"image_renditions"},
    "processing_stats": {"published_images"},
    "delivery_probes": {"published_images"},
    "cleaned_stores": {"published_images"},
}
IMAGE_ASSETS = ("source_images", "original_images", "image_renditions", "published_images")
CHECKS = {  # blocking?
    "success_rate": True,
    "few_images_gone_or_expired": True,
    "published_objects_in_store": True,
    "shard_success_rate": False,
}

STANDING_CHECKS = {
    "no_image_lost_on_our_watch",
    "images_arrived_dead",
    "deadlines_can_be_kept",
    "no_due_image_left_waiting",
    "every_shard_was_scanned_within_a_day",
    "no_shard_left_failed",
    "no_host_left_alone_for_long",
    "no_erasure_left_unfinished",
}


@pytest.fixture(scope="module")
def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_the_assets_follow_the_flow(specs: dict[str, dg.AssetSpec]) -> None:
    found = {name: {dep.asset_key.to_user_string() for dep in spec.deps} for name, spec in specs.items()}
    assert found == GRAPH


def test_all_image_assets_share_the_64_shards_and_go_16_to_a_run(specs: dict[str, dg.AssetSpec]) -> None:
    graph = defs.resolve_asset_graph()
    for name in IMAGE_ASSETS:
        node = graph.get(AssetKey(name))
        assert node.partitions_def == dg.StaticPartitionsDefinition(SHARDS)
        assert node.backfill_policy == dg.BackfillPolicy.multi_run(16)
    assert len(SHARDS) == 64
    assert (SHARDS[0], SHARDS[-1]) == ("00", "3f")


def test_every_asset_is_described(specs: dict[str, dg.AssetSpec]) -> None:
    for spec in specs.values():
        assert spec.description
        assert spec.group_name in ("application", "images", "statistics", "delivery", "upkeep")
        assert spec.kinds
        assert spec.owners
        assert spec.tags


def test_three_checks_can_fail_a_run_and_one_informs_per_shard() -> None:
    graph = defs.resolve_asset_graph()
    nodes = {key: graph.get(key) for key in graph.asset_check_keys}
    assert {key.name: node.blocking for key, node in nodes.items() if key.name in CHECKS} == CHECKS
    assert {key.asset_key for key in nodes if key.name in CHECKS} == {AssetKey("published_images")}
    assert {key.name for key, node in nodes.items() if node.blocking} == {name for name in CHECKS if CHECKS[name]}
    partitioned = {key.name for key, node in nodes.items() if node.partitions_def is not None}
    assert partitioned == {"shard_success_rate"}
    assert all(node.description for node in nodes.values())


@pytest.mark.parametrize("name", ["publish_images", "nightly_freshness"])
def test_the_job_has_all_image_assets_and_runs_in_process(name: str) -> None:
    job = defs.resolve_job_def(name)
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(IMAGE_ASSETS)
    assert job.executor_def.name == "in_process"
    assert defs.resolve_implicit_global_asset_job_def().executor_def.name == "in_process"
    assert job.description
    assert AssetCheckKey(AssetKey("published_images"), "success_rate") in job.asset_layer.asset_graph.asset_check_keys


def test_the_night_begins_at_two_once_somebody_switches_it_on() -> None:
    schedule = defs.resolve_schedule_def("nightly_freshness_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_hours_are_counted_24_to_a_run_at_five_past_once_somebody_switches_it_on() -> None:
    node = defs.resolve_asset_graph().get(AssetKey("processing_stats"))
    assert node.backfill_policy == dg.BackfillPolicy.multi_run(24)
    job = defs.resolve_job_def("hourly_stats")
    assert job.asset_layer.executable_asset_keys == {AssetKey("processing_stats")}
    assert {key.name for key in job.asset_layer.asset_graph.asset_check_keys} == {
        "mean_processing_time",
        "stats_consistent_with_jobs",
    }
    schedule = defs.resolve_schedule_def("hourly_stats_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("5 * * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_clean_up_runs_every_morning_with_its_check_once_somebody_switches_it_on() -> None:
    job = defs.resolve_job_def("clean_up")
    assert job.asset_layer.executable_asset_keys == {AssetKey("cleaned_stores")}
    names = {key.name for key in job.asset_layer.asset_graph.asset_check_keys}
    assert names == {"stores_hold_what_the_catalog_says"}
    assert job.partitions_def is None
    schedule = defs.resolve_schedule_def("clean_up_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 5 * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_delivery_is_probed_every_hour_with_its_checks_once_somebody_switches_it_on() -> None:
    job = defs.resolve_job_def("probe_delivery")
    assert job.asset_layer.executable_asset_keys == {AssetKey("delivery_probes")}
    names = {key.name for key in job.asset_layer.asset_graph.asset_check_keys}
    assert names == {"urls_answer_within_150_ms", "no_published_url_is_broken"}
    assert job.partitions_def is None
    schedule = defs.resolve_schedule_def("probe_delivery_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("40 * * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_standing_checks_run_every_hour_in_a_job_of_their_own_and_in_no_other() -> None:
    job = defs.resolve_job_def("standing_checks")
    names = {key.name for key in job.asset_layer.asset_graph.asset_check_keys}
    assert names == STANDING_CHECKS
    assert job.partitions_def is None
    for other in ("publish_images", "nightly_freshness", "hourly_stats"):
        keys = defs.resolve_job_def(other).asset_layer.asset_graph.asset_check_keys
        assert not names & {key.name for key in keys}
    schedule = defs.resolve_schedule_def("standing_checks_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("10 * * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_image_assets_are_stale_when_a_night_was_missed(specs: dict[str, dg.AssetSpec]) -> None:
    missed = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26), warn_window=timedelta(hours=25))
    assert {specs[name].freshness_policy for name in IMAGE_ASSETS} == {missed}


def test_the_sensor_for_due_work_starts_the_publishing_job_and_is_stopped_at_first() -> None:
    sensor = defs.resolve_sensor_def("due_images_sensor")
    assert sensor.job_name == "publish_images"
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED


def test_no_asset_is_retried_as_a_whole() -> None:
    """With a retry policy, Dagster would run the step again when it is told to stop."""
    for assets in defs.resolve_asset_graph().assets_defs:
        if assets.is_executable:
            assert assets.op.retry_policy is None


def test_definitions_are_loadable_and_take_other_resources() -> None:
    other = MirrorResource()
    dg.Definitions.validate_loadable(build_defs(resources={"mirror": other}))
    resources = build_defs(resources={"mirror": other}).resources or {}
    assert resources["mirror"] is other
    assert set(resources) == {"mirror", "catalog"}


def test_importing_the_definitions_loads_nothing_heavy_and_touches_nothing(tmp_path: Path) -> None:
    """With nonsense in the environment, in an empty folder, without network; only Python's own files are opened."""
    program = """
import json, sys
import dagster
opened = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].endswith((".py", ".pyc")):
        opened.append(arguments[0])
    if event.startswith(("socket.", "subprocess.", "os.mkdir", "os.rename", "os.remove")):
        opened.append(event)
sys.addaudithook(watch)
import cdn_pipeline.definitions
heavy = [
    "sqlalchemy", "psycopg", "alembic", "PIL", "pyvips", "numpy", "obstore", "boto3", "aiohttp", "httpx", "pebble",
    "fastapi", "starlette", "uvicorn", "jinja2", "apprise", "prometheus_client", "psutil", "rich", "typer",
]
print(json.dumps({"opened": opened, "heavy": [name for name in heavy if name in sys.modules]}))
"""
    names = ["SOURCE_DATABASE_URL", "CATALOG_DATABASE_URL", "OBJECT_STORE_URL", "CDN_BASE_URL", "R2_ACCESS_KEY_ID"]
    (tmp_path / ".env").write_text("DOWNLOAD_ALLOWED_NETWORKS=nonsense\n")

    done = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=tmp_path, env=dict.fromkeys(names, "nonsense"), capture_output=True
    )

    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {"opened": [], "heavy": []}
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
