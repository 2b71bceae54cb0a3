"""What Dagster knows of this project, as plain expectations; and what importing it costs and touches."""

import json
import subprocess
import sys
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
}
IMAGE_ASSETS = ("source_images", "original_images", "image_renditions", "published_images")
CHECKS = {  # blocking?
    "success_rate": True,
    "few_images_gone_or_expired": True,
    "published_objects_in_store": True,
    "shard_success_rate": False,
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
        assert spec.group_name in ("application", "images")
        assert spec.kinds
        assert spec.owners
        assert spec.tags


def test_three_checks_can_fail_a_run_and_one_informs_per_shard() -> None:
    graph = defs.resolve_asset_graph()
    nodes = {key: graph.get(key) for key in graph.asset_check_keys}
    assert {key.name: node.blocking for key, node in nodes.items()} == CHECKS
    assert {key.asset_key for key in nodes} == {AssetKey("published_images")}
    partitioned = {key.name for key, node in nodes.items() if node.partitions_def is not None}
    assert partitioned == {"shard_success_rate"}
    assert all(node.description for node in nodes.values())


def test_the_job_has_all_image_assets_and_runs_in_process() -> None:
    job = defs.resolve_job_def("publish_images")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(IMAGE_ASSETS)
    assert job.executor_def.name == "in_process"
    assert defs.resolve_implicit_global_asset_job_def().executor_def.name == "in_process"
    assert job.description
    assert AssetCheckKey(AssetKey("published_images"), "success_rate") in job.asset_layer.asset_graph.asset_check_keys


def test_no_asset_is_retried_as_a_whole() -> None:
    """With a retry policy, Dagster would run the step again when it is told to stop."""
    for assets in defs.resolve_asset_graph().assets_defs:
        if assets.is_executable:
            assert assets.op.retry_policy is None


def test_definitions_are_loadable_and_take_other_resources() -> None:
    other = MirrorResource()
    dg.Definitions.validate_loadable(build_defs(resources={"mirror": other}))
    assert build_defs(resources={"mirror": other}).resources == {"mirror": other}


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
heavy = ["sqlalchemy", "psycopg", "PIL", "obstore", "aiohttp", "httpx", "alembic", "pebble", "boto3", "numpy"]
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
