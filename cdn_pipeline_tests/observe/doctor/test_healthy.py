"""A set-up that lacks nothing, what of it may differ without being ill, and how checks depend on each other."""

import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.engine.transcoding import LARGE_MEMORY_BYTES
from cdn_pipeline.observe.doctor.configuration import misspelt
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.examination import CHECKS, Check, examine
from cdn_pipeline.observe.doctor.findings import Finding, State, failed, ok
from cdn_pipeline.observe.doctor.machine import memory_of_run
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.observe.doctor.cloudflare import ACCOUNT_ID, Cloudflare
from cdn_pipeline_tests.observe.doctor.set_ups import Doctor, having
from cdn_pipeline_tests.sources.decodo_service import profile_page, running_decodo, user


def test_nothing_is_found_in_a_healthy_set_up_and_nothing_is_left_in_it(doctor: Doctor, tmp_path: Path) -> None:
    findings = doctor()
    assert {name: finding.words for name, finding in findings.items() if finding.state is not State.OK} == {}
    assert list(findings) == [check.name for check in CHECKS]
    assert [file for file in tmp_path.rglob("doctor-*") if file.is_file()] == []


def test_what_is_optional_is_skipped_with_what_it_would_be_for(doctor: Doctor) -> None:
    variables = ("CF_API_TOKEN", "CF_ZONE_ID", "CF_ACCOUNT_ID", "DECODO_AUTH_TOKEN", "ALERT_URLS", "ADMIN_API_TOKEN")
    findings = doctor(**dict.fromkeys(variables))
    skipped = {"Cloudflare token", "Cloudflare purge", "Cloudflare figures", "provider", "alerts", "admin token"}
    assert having(State.SKIPPED, findings) == skipped
    assert having(State.FAILED, findings) == set()


def test_a_token_of_an_account_is_as_good_as_a_users(doctor: Doctor, cloudflare: Cloudflare) -> None:
    cloudflare.token_path = f"/accounts/{ACCOUNT_ID}/tokens/verify"
    assert doctor()["Cloudflare token"].state is State.OK


def test_the_purge_that_is_tried_is_of_a_url_that_nobody_uses(doctor: Doctor, cloudflare: Cloudflare) -> None:
    doctor()
    assert [url.partition("/th/")[1] for purge in cloudflare.purged for url in purge["files"]] == [""]


def test_the_provider_is_asked_only_if_somebody_says_so(doctor: Doctor) -> None:
    with running_decodo() as decodo:
        decodo.order("instagram", profile_page(user(username="instagram")))
        decodo_url = decodo.base_url
        assert doctor(DECODO_API_URL=decodo_url)["provider"].state is State.OK
        assert decodo.calls == []
        assert doctor(ask=True, DECODO_API_URL=decodo_url)["provider"].state is State.OK
        assert decodo.asked == {"instagram": 1}


def test_a_provider_that_refuses_our_credentials_is_told_when_it_is_asked(doctor: Doctor) -> None:
    with running_decodo() as decodo:
        decodo.token = "another"
        finding = doctor(ask=True, DECODO_API_URL=decodo.base_url)["provider"]
    assert (finding.state, "DECODO_AUTH_TOKEN" in finding.cure) == (State.FAILED, True)


def test_everything_that_is_not_well_comes_with_what_to_do(doctor: Doctor) -> None:
    findings = doctor(DAGSTER_HOME=None, ADMIN_API_TOKEN="short", ALERT_URLS="none", CDN_BASE_URL="http://127.0.0.1:9")
    ill = [finding for finding in findings.values() if finding.state in (State.WARNING, State.FAILED)]
    assert len(ill) >= 4
    assert all(finding.cure for finding in ill)


def named(name: str, look: Finding | Exception | threading.Event, *needs: str) -> Check:
    def find(_: Deployment) -> Finding:
        if isinstance(look, threading.Event):
            look.wait()
        if isinstance(look, Exception):
            raise look
        return look if isinstance(look, Finding) else ok("")

    return Check(name, find, needs, seconds=0.05)


def states(*checks: Check) -> list[State]:
    with Deployment() as deployment:
        return [checked.finding.state for checked in examine(deployment, checks)]


def test_what_depends_on_something_ill_is_skipped_however_far_away() -> None:
    checks = [named("a", failed("", "")), named("b", ok(""), "a"), named("c", ok(""), "b"), named("d", ok(""))]
    assert states(*checks) == [State.FAILED, State.SKIPPED, State.SKIPPED, State.OK]


def test_a_check_that_hangs_or_breaks_has_failed_and_the_others_go_on() -> None:
    never = threading.Event()
    assert states(named("a", never), named("b", ValueError("x")), named("c", ok(""))) == [
        State.FAILED,
        State.FAILED,
        State.OK,
    ]
    never.set()


def test_every_check_needs_only_what_comes_before_it() -> None:
    before: set[str] = set()
    for check in CHECKS:
        assert set(check.needs) <= before, check.name
        before.add(check.name)


@given(st.sampled_from(sorted(Settings.model_fields)), st.data())
def test_a_variable_with_a_typing_error_is_found_and_the_right_one_is_suggested(name: str, data: st.DataObject) -> None:
    name = name.upper()
    place = data.draw(st.integers(1, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    if len(name) < 8 or wrong in {other.upper() for other in Settings.model_fields}:
        return
    assert list(misspelt([wrong])) == [(wrong, name)]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("ADMIN_TOKEN", "ADMIN_API_TOKEN"),
        ("SOURCE_DB_URL", "SOURCE_DATABASE_URL"),
        ("DOWNLOAD_NETWORKS", "DOWNLOAD_ALLOWED_NETWORKS"),
        ("MONTHLY_BUDGET", "MONTHLY_BUDGET_USD"),
        ("OBJECT_STORE", "OBJECT_STORE_URL"),
        ("R2_SECRET_KEY", "R2_SECRET_ACCESS_KEY"),
    ],
)
def test_a_name_with_a_word_left_out_or_shortened_is_found(wrong: str, meant: str) -> None:
    assert list(misspelt([wrong])) == [(wrong, meant)]


def test_the_variables_of_others_are_left_alone() -> None:
    others = [*os.environ, *_OF_OTHERS]
    ours = [name.upper() for name in Settings.model_fields]
    assert list(misspelt([name for name in others if not name.startswith("CDN_")] + ours)) == []


# As shells, Postgres, clouds, CI and frameworks have them: the likest to ours among some hundreds that were looked at.
_OF_OTHERS = re.findall(
    r"\w+",
    """
    PATH HOME PORT HOST LANG PROFILE BROWSER API_KEY API_TOKEN API_URL API_BASE_URL BASE_URL AUTH_TOKEN ADMIN_EMAIL
    DATABASE_URL DATABASE_USER TEST_DATABASE_URL POSTGRES_URL PGDATABASE SOURCE_DATE_EPOCH SOURCE_URL PRIVATE_KEY
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_BUCKET_NAME AWS_ACCOUNT_ID
    ACCESS_KEY_ID SECRET_ACCESS_KEY BUCKET_NAME S3_BUCKET_NAME S3_ENDPOINT_URL CLOUDFLARE_API_TOKEN
    DAGSTER_HOME DAGSTER_PG_URL DAGSTER_CLOUD_URL DAGSTER_GRPC_PORT GITHUB_GRAPHQL_URL CI_API_V4_URL REDIS_URL
    """,
)


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_a_run_needs_memory_for_one_large_picture_and_every_worker(cores: int) -> None:
    assert LARGE_MEMORY_BYTES < memory_of_run(cores) < memory_of_run(cores + 1)
