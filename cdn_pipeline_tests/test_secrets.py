"""No secret of the environment comes out again: not in words, not in errors, not in what Dagster keeps."""

import asyncio
import logging
import re
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from typer.testing import CliRunner

from cdn_pipeline.catalog.sessions import open_source_database, open_unmigrated_catalog, with_driver
from cdn_pipeline.cli import app
from cdn_pipeline.cloudflare.analytics import Analytics
from cdn_pipeline.cloudflare.purge import CachePurge
from cdn_pipeline.definitions import defs
from cdn_pipeline.engine.mirror import open_store
from cdn_pipeline.settings import ConfigurationError, Settings
from cdn_pipeline.sources.app_database import read_references
from cdn_pipeline.sources.decodo import Decodo, Pace

# Each is found by its own word, whatever stands around it.
SECRETS = {
    "SOURCE_DATABASE_URL": "source-hunter2",
    "CATALOG_DATABASE_URL": "catalog-hunter3",
    "R2_SECRET_ACCESS_KEY": "store-hunter4",
    "CF_API_TOKEN": "purge-hunter5",
    "DECODO_AUTH_TOKEN": "provider-hunter6",
}
LEAK = re.compile(r"hunter\d")
_LOOKS_SECRET = re.compile(r"token|secret|password|database_url")


@pytest.fixture(scope="module")
def nobody() -> Iterator[int]:
    """A port on which nobody answers: it is taken, and nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def secret_environment(nobody: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """A whole deployment, of which nothing answers."""
    here = f"127.0.0.1:{nobody}"
    environment = {
        "CDN_PIPELINE_VAR_DIR": str(tmp_path / "var"),
        "SOURCE_DATABASE_URL": f"postgresql://reader:{SECRETS['SOURCE_DATABASE_URL']}@{here}/application",
        "CATALOG_DATABASE_URL": f"postgresql://writer:{SECRETS['CATALOG_DATABASE_URL']}@{here}/catalog",
        "OBJECT_STORE_URL": "s3://renditions",
        "ORIGINALS_STORE_URL": "s3://originals",
        "R2_ACCESS_KEY_ID": "id",
        "R2_SECRET_ACCESS_KEY": SECRETS["R2_SECRET_ACCESS_KEY"],
        "R2_ENDPOINT_URL": f"http://{here}",
        "CF_API_TOKEN": SECRETS["CF_API_TOKEN"],
        "CF_ZONE_ID": "zone",
        "CF_API_URL": f"http://{here}",
        "DECODO_AUTH_TOKEN": SECRETS["DECODO_AUTH_TOKEN"],
        "DECODO_API_URL": f"http://{here}",
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def secret_settings(secret_environment: Mapping[str, str]) -> Settings:
    return Settings()


def test_every_setting_with_a_secret_is_hidden_where_settings_are_shown(secret_settings: Settings) -> None:
    """By name, so that one that is added is hidden as well."""
    for name, described in Settings.model_fields.items():
        if _LOOKS_SECRET.search(name):
            assert not described.repr or "SecretStr" in str(described.annotation), name
    shown = f"{secret_settings} {secret_settings!r} {[secret_settings]} {dict(secret_settings.__repr_args__())}"
    assert not LEAK.search(shown)


def _errors_of_a_store(settings: Settings) -> None:
    asyncio.run(open_store(settings, settings.objects_url).head("th/ig/a.webp"))


def _errors_of_the_catalog(settings: Settings) -> None:
    with open_unmigrated_catalog(settings) as engine, engine.connect():
        pass


def _errors_of_the_source(settings: Settings) -> None:
    with open_source_database(settings) as engine:
        list(read_references(engine, "00", "3f"))


def _errors_of_the_purge(settings: Settings) -> None:
    async def purge() -> None:
        assert settings.cf_zone_id
        assert settings.cf_api_token
        async with CachePurge(settings.cf_zone_id, settings.cf_api_token, api_url=settings.cf_api_url) as client:
            await client.purge_prefixes(["cdn.example/th/ig/owner"])

    asyncio.run(purge())


def _errors_of_the_analytics(settings: Settings) -> None:
    assert settings.cf_zone_id
    assert settings.cf_api_token
    with Analytics(settings.cf_api_token, api_url=settings.cf_api_url) as client:
        client.limits(settings.cf_zone_id)


def _errors_of_the_provider(settings: Settings) -> None:
    assert settings.decodo_auth_token
    token = settings.decodo_auth_token.get_secret_value()
    with Decodo(settings.decodo_api_url, token, Pace(calls_per_second=1000, first_retry_seconds=0.01)) as client:
        [answer] = client.fetch(["nba"])
    raise RuntimeError(repr(answer))


@pytest.mark.parametrize(
    "fail",
    [
        _errors_of_the_catalog,
        _errors_of_the_source,
        _errors_of_a_store,
        _errors_of_the_purge,
        _errors_of_the_analytics,
        _errors_of_the_provider,
    ],
)
def test_no_error_tells_a_secret_nor_do_its_causes_or_the_log(
    secret_settings: Settings, fail: Callable[[Settings], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Exception) as failed:
        fail(secret_settings)
    causes: list[str] = []
    error: BaseException | None = failed.value
    while error is not None:
        causes.append(f"{error} {error!r}")
        error = error.__cause__ or error.__context__
    assert not LEAK.search("\n".join([*causes, *traceback.format_exception(failed.value), caplog.text]))


@pytest.mark.parametrize(
    "command",
    [
        ["migrate"],
        ["doctor"],
        ["status"],
        ["verify"],
        ["erase", "--resume"],
        ["queue", "hold", "--yes"],
        ["clean-up"],
    ],
)
def test_no_command_tells_a_secret_when_nothing_answers(
    secret_environment: Mapping[str, str], command: list[str]
) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert not LEAK.search(result.output + repr(result.exception))


def test_dagster_keeps_no_secret_of_a_run_that_fails(secret_environment: Mapping[str, str]) -> None:
    """Events, logs, run and configuration: all that the UI shows and its storage holds."""
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("publish_images")
        result = job.execute_in_process(instance=instance, tags={"dagster/partition": "00"}, raise_on_error=False)
        assert not result.success
        [run] = instance.get_runs()
        snapshot = instance.get_job_snapshot(run.job_snapshot_id) if run.job_snapshot_id else None
        kept = [dg.serialize_value(entry) for entry in instance.all_logs(run.run_id)]
        kept += [dg.serialize_value(run), dg.serialize_value(snapshot) if snapshot else ""]
    assert any("Error" in entry for entry in kept)
    assert not LEAK.search("\n".join(kept))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@rest@host/db",
        "postgresql://user:one@hunter2@127.0.0.1:5432/db",
        "postgresql://user@host/db?password=hunter2",
        "postgresql://user:hunter2@host:port/db",
        "mysql://user:hunter2@host/db",
        "hunter2",
    ],
)
def test_a_database_url_of_which_part_would_be_shown_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        with_driver(url)
    assert not LEAK.search("".join(traceback.format_exception(refused.value)))


@pytest.mark.parametrize("password", ["hunter2", "hun%40ter2", "hun/ter2#?[", "hun ter2"])
def test_a_password_may_hold_what_a_url_may_hold(password: str) -> None:
    parsed = sa.make_url(with_driver(f"postgresql://user:{password}@host:5432/db"))
    assert (parsed.host, parsed.port, parsed.database) == ("host", 5432, "db")


def test_the_newline_at_the_end_of_a_secret_from_a_file_is_no_part_of_it(
    secret_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP clients refuse such a header, in an error that shows it."""
    monkeypatch.setenv("CF_API_TOKEN", "purge-hunter5\n")
    assert Settings().cf_api_token == SecretStr("purge-hunter5")
