"""Each broken set-up: the doctor names its cause and its cure, and finds nothing else broken but what depends on it."""

import asyncio
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from aiohttp import web

from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.observe.doctor.findings import State
from cdn_pipeline_tests.observe.doctor.cloudflare import Cloudflare
from cdn_pipeline_tests.observe.doctor.set_ups import NOBODY, Doctor, execute, having, names
from cdn_pipeline_tests.s3 import S3Server

# -- configuration --


def test_half_a_configuration(doctor: Doctor) -> None:
    findings = doctor(CF_ZONE_ID=None)
    assert names(findings, "configuration", "CF_ZONE_ID is missing beside CF_API_TOKEN", ".env.example")
    assert {"catalog", "source", "renditions store", "alerts"} <= having(State.SKIPPED, findings)


def test_originals_in_the_store_of_renditions(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    findings = doctor(ORIGINALS_STORE_URL=healthy["OBJECT_STORE_URL"])
    assert names(findings, "configuration", "originals are private, renditions public", ".env")


def test_a_variable_whose_name_is_misspelt(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("R2_BUCKET=pictures\n")
    findings = doctor(ALERT_URL="json://127.0.0.1")
    words = "nobody reads ALERT_URL (meant: ALERT_URLS?), R2_BUCKET (meant: R2_BUCKET_NAME?)"
    assert names(findings, "variables", words, "Correct the name", state=State.WARNING)


# -- the machine --

Usage = namedtuple("Usage", "total used free percent")  # psutil's own type is private


@pytest.mark.parametrize(("used", "state"), [(96, State.FAILED), (90, State.WARNING)])
def test_a_disk_without_room(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, used: int, state: State) -> None:
    monkeypatch.setattr(psutil, "disk_usage", lambda path: Usage(100, used, 100 - used, float(used)))
    assert names(doctor(), "disks", f"{used}% full", "clean-up", state=state)


def test_too_little_memory_for_a_run(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{512 << 20}\n")
    monkeypatch.setattr("cdn_pipeline.observe.doctor.machine._CGROUP_LIMIT", limit)
    assert names(doctor(), "machine", "0.5 GB of memory", "more memory")


# -- the stores --


def s3(server: S3Server, bucket: str, **changed: str) -> dict[str, str]:
    """The environment of renditions in this bucket, with originals in a folder as before."""
    return {
        "OBJECT_STORE_URL": f"s3://{bucket}",
        "R2_ENDPOINT_URL": server.endpoint_url,
        "R2_ACCESS_KEY_ID": server.access_key_id,
        "R2_SECRET_ACCESS_KEY": server.secret_access_key,
        **changed,
    }


def test_a_bucket_of_s3_is_as_good_as_a_folder_and_nothing_is_left_in_it(doctor: Doctor, moto_server: S3Server) -> None:
    bucket = moto_server.new_bucket()
    findings = doctor(**s3(moto_server, bucket))
    assert findings["renditions store"].state is State.OK
    assert having(State.FAILED, findings) == set()

    async def left() -> list[str]:
        return [key async for key in moto_server.store(f"s3://{bucket}").list()]

    assert asyncio.run(left()) == []


def test_a_missing_bucket(doctor: Doctor, moto_server: S3Server) -> None:
    findings = doctor(**s3(moto_server, "nowhere"))
    assert names(findings, "renditions store", "s3://nowhere: there is no such bucket", "correct R2_BUCKET_NAME")


def test_a_wrong_secret(doctor: Doctor, rclone_server: S3Server) -> None:
    findings = doctor(**s3(rclone_server, rclone_server.new_bucket(), R2_SECRET_ACCESS_KEY="another-secret-key"))
    assert names(findings, "renditions store", "the secret is not that of the key", "Correct R2_SECRET_ACCESS_KEY")


def test_an_unknown_key(doctor: Doctor, rclone_server: S3Server) -> None:
    findings = doctor(**s3(rclone_server, rclone_server.new_bucket(), R2_ACCESS_KEY_ID="another-access-key"))
    assert names(findings, "renditions store", "does not know the key", "R2_ACCESS_KEY_ID")


def test_a_store_that_ignores_conditional_puts(doctor: Doctor, rclone_server: S3Server) -> None:
    findings = doctor(**s3(rclone_server, rclone_server.new_bucket()))
    assert names(findings, "renditions store", "overwrites objects", "Harmless", state=State.WARNING)


def test_an_endpoint_that_does_not_answer(doctor: Doctor, moto_server: S3Server) -> None:
    findings = doctor(**s3(moto_server, "bucket", R2_ENDPOINT_URL=f"http://{NOBODY}"))
    assert names(findings, "renditions store", "the endpoint does not answer", "R2_ENDPOINT_URL")


async def _only_reads(request: web.Request) -> web.Response:
    code, status = ("NoSuchKey", 404) if request.method == "GET" else ("AccessDenied", 403)
    return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>", content_type="application/xml")


def test_a_key_that_only_reads(doctor: Doctor, moto_server: S3Server) -> None:
    application = web.Application()
    application.add_routes([web.route("*", "/{path:.*}", _only_reads)])
    with in_thread(listening(application)) as endpoint:
        findings = doctor(**s3(moto_server, "bucket", R2_ENDPOINT_URL=endpoint))
    assert names(findings, "renditions store", "may be read and not written", "Object Read & Write")


def test_a_folder_that_cannot_be_made(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = doctor(ORIGINALS_STORE_URL=(tmp_path / "file" / "originals").as_uri())
    assert names(findings, "originals store", "cannot create", "is the folder writable?")
    assert findings["originals private"].state is State.SKIPPED


def test_originals_that_the_cdn_serves(doctor: Doctor, tmp_path: Path) -> None:
    """The custom domain is the wrong bucket's."""
    objects, originals = ((tmp_path / name).as_uri() for name in ("objects", "originals"))
    findings = doctor(OBJECT_STORE_URL=originals, ORIGINALS_STORE_URL=objects)
    assert names(
        findings, "originals private", f"serves what is in {objects}", "custom domain at the bucket of renditions"
    )


# -- delivery --


def test_a_cdn_that_does_not_answer(
    doctor: Doctor, catalog: sa.Engine, moto_server: S3Server, healthy: Mapping[str, str]
) -> None:
    execute(healthy["CATALOG_DATABASE_URL"], f"UPDATE cdn_delivery SET base_url = 'http://{NOBODY}'")
    here = doctor(CDN_BASE_URL=f"http://{NOBODY}")
    assert names(here, "CDN", "does not answer", "cdn-pipeline serve", state=State.WARNING)
    there = doctor(CDN_BASE_URL=f"http://{NOBODY}", **s3(moto_server, moto_server.new_bucket()))
    assert names(there, "CDN", "does not answer", "CDN_BASE_URL")


def test_a_cdn_in_front_of_another_store(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "objects" / "th").rename(tmp_path / "gone")
    assert names(doctor(), "CDN", "another status than 200 (404)", "custom domain")


# -- Dagster --


def test_no_dagster_home(doctor: Doctor) -> None:
    findings = doctor(DAGSTER_HOME=None)
    assert names(findings, "Dagster home", "DAGSTER_HOME is not set", "export DAGSTER_HOME=/", state=State.WARNING)


def test_a_dagster_home_that_is_not_there(doctor: Doctor) -> None:
    assert names(doctor(DAGSTER_HOME="elsewhere"), "Dagster home", "no folder", "must be absolute")


def test_a_dagster_home_without_our_limits(doctor: Doctor, tmp_path: Path) -> None:
    findings = doctor(DAGSTER_HOME=str(tmp_path))
    assert names(findings, "Dagster home", "dagster.yaml is not there", "cp ", state=State.WARNING)


def test_a_sensor_that_is_off(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(
        healthy["CATALOG_DATABASE_URL"],
        "UPDATE cdn_heartbeats SET beat_at = now() - interval '1 day' WHERE name = 'alerts_sensor'",
    )
    findings = doctor()
    assert names(
        findings, "Dagster daemon", "last seen: alerts_sensor 24 h ago", "switch on alerts_sensor", state=State.WARNING
    )


def _first_run(ago: str) -> str:
    return f"""
        INSERT INTO cdn_runs (run_id, lock_key, worker_id, started_at)
        VALUES ('first', 1, 'here', now() - interval '{ago}')"""


def test_schedules_whose_first_tick_is_not_due_yet_are_no_warning(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(
        healthy["CATALOG_DATABASE_URL"],
        "DELETE FROM cdn_delivery_probes",
        _first_run("1 hour"),
    )
    finding = doctor()["schedules"]
    assert finding.state is State.OK
    assert "not yet due for the first time: probe_delivery_schedule" in finding.words


def test_schedules_that_are_off(doctor: Doctor, healthy: Mapping[str, str]) -> None:
    execute(
        healthy["CATALOG_DATABASE_URL"],
        "DELETE FROM cdn_delivery_probes",
        _first_run("3 hours"),
    )
    findings = doctor()
    assert names(findings, "schedules", "probe_delivery_schedule never", "all schedules", state=State.WARNING)


# -- others --


def test_a_token_that_cloudflare_refuses(doctor: Doctor) -> None:
    findings = doctor(CF_API_TOKEN="another")
    assert names(findings, "Cloudflare token", "Invalid API Token", "Cache Purge")
    assert {"Cloudflare purge", "Cloudflare figures"} <= having(State.SKIPPED, findings)


def test_a_token_that_has_expired(doctor: Doctor, cloudflare: Cloudflare) -> None:
    cloudflare.status = "expired"
    assert names(doctor(), "Cloudflare token", "the token is expired", "CF_API_TOKEN")


def test_cloudflare_that_does_not_answer(doctor: Doctor) -> None:
    assert names(doctor(CF_API_URL=f"http://{NOBODY}"), "Cloudflare token", "cannot be reached", "CF_API_TOKEN")


def test_a_token_that_may_not_purge(doctor: Doctor, cloudflare: Cloudflare) -> None:
    cloudflare.may_purge = False
    assert names(doctor(), "Cloudflare purge", "Authentication error", "give the token Cache Purge")


def test_a_zone_that_is_not_the_tokens(doctor: Doctor) -> None:
    findings = doctor(CF_ZONE_ID="f" * 32)
    assert names(findings, "Cloudflare purge", "404", "Set CF_ZONE_ID to the zone of CDN_BASE_URL")
    assert findings["Cloudflare figures"].state is State.WARNING


def test_credentials_of_the_provider_that_are_none(doctor: Doctor) -> None:
    assert names(doctor(DECODO_AUTH_TOKEN="nonsense"), "provider", "neither user:password nor", "whole")


def test_a_receiver_of_alerts_that_is_none(doctor: Doctor) -> None:
    findings = doctor(ALERT_URLS="json://127.0.0.1 slak://secret")
    assert names(findings, "alerts", "number 2 is no URL", "apprise")
    assert "secret" not in findings["alerts"].words


def test_an_admin_token_that_can_be_guessed(doctor: Doctor) -> None:
    findings = doctor(ADMIN_API_TOKEN="admin")
    assert names(findings, "admin token", "5 characters", "openssl rand", state=State.WARNING)
