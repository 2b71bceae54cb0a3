"""Dagster's instance: the laptop's and production's say the same, and production's really works."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import obstore
import pytest
from dagster_shared.yaml_utils import load_yaml_from_path
from sqlalchemy.engine import make_url

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.collections import SHARDS
from cdn_pipeline.definitions import defs
from cdn_pipeline_tests.orchestration.workplace import ALL_SHARDS, ASSETS, ROOT, Workplace, opened_workplace
from cdn_pipeline_tests.s3 import S3Server, moto_server
from cdn_pipeline_tests.world import SmallWorld

__all__ = ["moto_server"]

LAPTOP = ROOT / "dagster.yaml"
PRODUCTION = ROOT / "deploy" / "production" / "dagster.yaml"


def read(path: Path) -> Mapping[str, Any]:
    found = load_yaml_from_path(str(path))
    assert isinstance(found, dict)
    return found


def test_production_differs_from_a_laptop_only_in_storage_and_compute_logs() -> None:
    production = dict(read(PRODUCTION))
    assert production.pop("storage")["postgres"]["postgres_db"]["scheme"] == "postgresql+psycopg2"
    assert production.pop("compute_logs")["class"] == "S3ComputeLogManager"
    assert production == read(LAPTOP)


def test_no_secret_is_written_into_the_file_of_production() -> None:
    postgres = read(PRODUCTION)["storage"]["postgres"]["postgres_db"]
    assert {name for name, value in postgres.items() if not isinstance(value, dict)} == {"scheme"}


def test_limits_of_lanes_leave_one_place_for_what_cannot_wait() -> None:
    with dg.instance_for_test(overrides=dict(read(LAPTOP))) as instance:
        queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert list(queue.tag_concurrency_limits) == [
        {"key": "lane", "value": "urgent", "limit": 3},
        {"key": "lane", "value": "regular", "limit": 2},
        {"key": "lane", "value": "bulk", "limit": 1},
        {"key": "dagster/backfill", "limit": 1},
    ]
    assert queue.max_concurrent_runs == sum(limit["limit"] for limit in queue.tag_concurrency_limits) + 1


@pytest.mark.parametrize("job", ["hourly_stats", "standing_checks"])
def test_what_tells_of_trouble_starts_before_other_runs(job: str) -> None:
    assert defs.resolve_job_def(job).tags["dagster/priority"] == "10"


def test_telemetry_is_off() -> None:
    with dg.instance_for_test(overrides=dict(read(LAPTOP))) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled


@pytest.fixture
def logs_bucket(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    bucket = moto_server.new_bucket()
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET_NAME", bucket)
    monkeypatch.setenv("R2_ENDPOINT_URL", moto_server.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto_server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto_server.secret_access_key)
    return bucket


@pytest.fixture
def production(
    run_environment: None,
    postgres_server: EmbeddedPostgres,
    logs_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workplace]:
    """Production's instance on a real Postgres, which is reached through its socket (libpq takes PGHOST then)."""
    name = f"dagster_{logs_bucket.replace('-', '_')}"
    postgres_server.ensure_database(name)
    url = make_url(postgres_server.url(name))
    monkeypatch.setenv("PGHOST", str(url.query["host"]))
    for variable, value in {"HOST": "", "PORT": "5432", "DB": name, "USER": "postgres", "PASSWORD": "unused"}.items():
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{variable}", value)
    with opened_workplace(tmp_path, PRODUCTION) as workplace:
        yield workplace


def test_the_job_runs_on_postgres_and_its_logs_go_to_s3(
    production: Workplace, small_world: SmallWorld, moto_server: S3Server, logs_bucket: str
) -> None:
    small_world(profiles=2, posts=1)

    assert production.execute(*ALL_SHARDS) == 0, production.log.read_text()

    assert "Postgres" in type(production.instance.event_log_storage).__name__
    run_id = production.latest_run().run_id
    assert production.latest_run().status is dg.DagsterRunStatus.SUCCESS
    assert set(production.materializations(run_id).values()) == {1}
    for asset in ASSETS:
        assert production.statuses(asset) == dict.fromkeys(SHARDS, "MATERIALIZED")
    assert production.check_statuses("success_rate") == {None: "SUCCEEDED"}
    objects = obstore.list(moto_server.store(f"s3://{logs_bucket}")._store).collect()
    assert any(run_id in thing["path"] for thing in objects), objects
