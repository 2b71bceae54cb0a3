"""The OpenTofu files: formatted, of the provider's resources, and with the headers that the local server sends."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from cdn_pipeline.api.delivery import Renditions
from cdn_pipeline.demo.serving import serving_asgi
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.deploy.files import DEPLOY

FOLDER = DEPLOY / "cloudflare"
PROGRAM = shutil.which("tofu") or shutil.which("terraform")

# Of the provider cloudflare/cloudflare 5: what each resource requires, as its schema says.
REQUIRED = {
    "cloudflare_account_token": {"account_id", "name", "policies"},
    "cloudflare_r2_bucket": {"account_id", "name"},
    "cloudflare_r2_bucket_cors": {"account_id", "bucket_name"},
    "cloudflare_r2_bucket_lifecycle": {"account_id", "bucket_name"},
    "cloudflare_r2_custom_domain": {"account_id", "bucket_name", "domain", "enabled", "zone_id"},
    "cloudflare_r2_managed_domain": {"account_id", "bucket_name", "enabled"},
    "cloudflare_ruleset": {"kind", "name", "phase", "zone_id"},
    "cloudflare_tiered_cache": {"value", "zone_id"},
}


def text() -> str:
    return "\n".join(file.read_text() for file in sorted(FOLDER.glob("*.tf")))


def resources() -> Mapping[tuple[str, str], str]:
    """The body of every resource, by type and name; blocks end with a brace of their own in the first column."""
    found = re.findall(r'^resource "(\w+)" "(\w+)" {\n(.*?)^}', text(), re.MULTILINE | re.DOTALL)
    return {(kind, name): body for kind, name, body in found}


@pytest.mark.skipif(PROGRAM is None, reason="neither tofu nor terraform is installed")
def test_the_files_parse_and_are_formatted() -> None:
    done = subprocess.run([str(PROGRAM), "fmt", "-check", "-diff", str(FOLDER)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_resource_is_the_providers_and_has_what_it_requires() -> None:
    assert resources()
    for (kind, _), body in resources().items():
        assert set(re.findall(r"^  (\w+)\s+=", body, re.MULTILINE)) >= REQUIRED[kind]


def test_every_variable_that_is_used_is_declared_and_every_declared_one_is_used() -> None:
    declared = set(re.findall(r'^variable "(\w+)"', text(), re.MULTILINE))
    assert set(re.findall(r"\bvar\.(\w+)", text())) == declared


def test_every_reference_is_to_a_resource_of_the_files() -> None:
    named = set(re.findall(r"(?<!data\.)\b(cloudflare_\w+)\.(\w+)", text()))
    assert named <= resources().keys()


def test_the_printed_environment_is_what_the_pipeline_reads() -> None:
    named = set(re.findall(r"^    ([A-Z0-9_]+)=", text(), re.MULTILINE))
    of_dagster = {"DAGSTER_LOGS_BUCKET_NAME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert named
    assert named - of_dagster <= {name.upper() for name in Settings.model_fields}


def test_originals_and_logs_have_no_public_name() -> None:
    assert [name for kind, name in resources() if kind == "cloudflare_r2_custom_domain"] == ["renditions"]
    managed = [body for (kind, _), body in resources().items() if kind == "cloudflare_r2_managed_domain"]
    assert managed
    assert all(re.search(r"enabled\s+= false", body) for body in managed)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "0123456789abcdef.webp"
    file.write_bytes(b"a picture")
    return file


def test_headers_and_preflight_are_those_of_the_local_server(picture: Path) -> None:
    with serving_asgi(Renditions(picture.parent, "no-store")) as base_url:
        got = httpx.get(f"{base_url}/{picture.name}", trust_env=False).headers
        preflight = httpx.options(f"{base_url}/{picture.name}", trust_env=False).headers
    body = resources()["cloudflare_ruleset", "headers"]
    told = dict(re.findall(r'^\s*"([\w-]+)"\s+= { operation = "set", value = "([^"]*)" }', body, re.MULTILINE))
    of_every_server = {"date", "server", "content-type", "content-length", "accept-ranges", "last-modified", "etag"}
    assert {name.lower(): value for name, value in told.items()} == {
        name: value for name, value in got.items() if name not in of_every_server | {"cache-control"}
    }
    cors = resources()["cloudflare_r2_bucket_cors", "renditions"]
    assert re.findall(r'"(\w+)"', re.search(r"methods = \[(.*?)]", cors)[1]) == (  # type: ignore[index]
        preflight["access-control-allow-methods"].split(", ")
    )
    assert f"max_age_seconds = {preflight['access-control-max-age']}" in cors
