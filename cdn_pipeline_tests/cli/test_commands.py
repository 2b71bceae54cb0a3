"""The command line explains itself, and its errors say what to do."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cdn_pipeline.cli import app
from cdn_pipeline.demo.processes import free_port


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no .env
    monkeypatch.setenv("CDN_PIPELINE_VAR_DIR", str(tmp_path / "var"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))


def test_the_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    work = ("demo", "dev", "serve", "migrate", "backfill", "status", "explain", "profile", "retry", "rollout", "queue")
    for command in (*work, "compare", "cdn", "rollback-drill", "cost"):
        assert command in result.output


def test_the_help_imports_no_dagster_no_database_and_nothing_else_that_is_heavy() -> None:
    heavy = {
        *("dagster", "sqlalchemy", "psycopg", "alembic", "PIL", "pyvips", "numpy", "obstore", "boto3", "aiohttp"),
        *("httpx", "pebble", "fastapi", "starlette", "uvicorn", "jinja2", "apprise", "prometheus_client", "psutil"),
    }
    program = (
        "import sys; from typer.testing import CliRunner; from cdn_pipeline.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        f"sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    )
    help_only = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (help_only.returncode, help_only.stderr) == (0, "")


def test_half_a_configuration_is_refused_with_the_names_of_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_BUCKET_NAME", "renditions")
    result = CliRunner().invoke(app, ["serve", "--port", str(free_port(8000))])
    assert result.exit_code == 2
    for name in ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_ENDPOINT_URL", "ORIGINALS_STORE_URL"):
        assert name in result.output


def test_the_demo_leaves_a_real_deployment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATABASE_URL", "postgresql://127.0.0.1:9/application")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert "unset SOURCE_DATABASE_URL" in " ".join(result.output.split())


def test_migrate_builds_the_catalog_of_any_postgres(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATALOG_DATABASE_URL", empty_database)
    monkeypatch.setenv("CDN_BASE_URL", "https://cdn.example")
    result = CliRunner().invoke(app, ["migrate"])
    assert result.exit_code == 0, result.output
    assert "https://cdn.example" in result.output
    engine = sa.create_engine(empty_database)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM cdn_image_urls")) == 0
        assert connection.scalar(sa.text("SELECT base_url FROM cdn_delivery")) == "https://cdn.example"
    engine.dispose()


def test_a_demo_that_is_told_to_end_leaves_no_process_behind(tmp_path: Path) -> None:
    demo = psutil.Popen([sys.executable, "-m", "cdn_pipeline.cli", "demo"], stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "var" / "demo" / "job-1.log").exists():  # pytest's time limit bounds it
            assert demo.poll() is None
            time.sleep(0.05)
        children = demo.children(recursive=True)
        assert any("cdn_pipeline.demo.origin" in " ".join(child.cmdline()) for child in children)
        demo.terminate()
        demo.wait(30)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    finally:
        if demo.poll() is None:
            demo.kill()


def test_a_database_that_does_not_answer_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATALOG_DATABASE_URL", "postgresql://somebody:secret@127.0.0.1:9/catalog")
    result = CliRunner().invoke(app, ["migrate"])
    assert result.exit_code == 2
    assert "CATALOG_DATABASE_URL" in result.output
    assert "Traceback" not in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_a_taken_port_is_told_before_anything_starts(command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, [command, "--port", str(port)])
    assert result.exit_code == 2
    assert f"port {port}" in result.output
    assert "--port" in result.output
