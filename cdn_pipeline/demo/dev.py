"""`make dev`: Dagster's UI and daemon, and beside them what a laptop needs: the API, with its pages and pictures."""

import os
import subprocess
import sys
from contextlib import ExitStack

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.demo.processes import free_port, python, require_free, running, stop
from cdn_pipeline.demo.show import environment
from cdn_pipeline.demo.stage import folder, open_stage
from cdn_pipeline.settings import Settings, project_root

_SERVE_PORT = 8000


def run_dev(settings: Settings, port: int) -> int:
    """Runs until Dagster ends or Ctrl-C; returns Dagster's exit status.

    Raises:
        ChildFailedError: the origin or the API does not start.
    """
    require_free(port)
    variables = {**os.environ, "DAGSTER_HOME": os.environ.get("DAGSTER_HOME") or str(project_root())}
    if settings.embedded_source:
        variables = environment(settings)
    with ExitStack() as companions:
        if settings.embedded_source:
            companions.enter_context(open_stage(settings))
        companions.enter_context(open_catalog(settings))  # the embedded server lives as long as we do
        if settings.objects_url.startswith("file:") and free_port(_SERVE_PORT) != _SERVE_PORT:
            print(f"Port {_SERVE_PORT} is taken, so pages and pictures come from whoever has it.", file=sys.stderr)  # noqa: T201
        elif settings.objects_url.startswith("file:"):
            companions.enter_context(
                running(
                    python("-m", "cdn_pipeline.cli", "serve", "--port", str(_SERVE_PORT)),
                    folder(settings) / "serve.log",
                    ready_url=f"http://127.0.0.1:{_SERVE_PORT}/livez",
                    environment={"DAGSTER_GRAPHQL_URL": f"http://127.0.0.1:{port}/graphql", **variables},
                )
            )
            print(f"API, operations page and pictures: http://127.0.0.1:{_SERVE_PORT}", file=sys.stderr)  # noqa: T201
        print(f"Dagster's UI: http://127.0.0.1:{port}/runs (Ctrl-C ends it)", file=sys.stderr)  # noqa: T201
        dagster = subprocess.Popen(  # noqa: S603
            python("-m", "dagster", "dev", "-p", str(port), "-w", str(project_root() / "workspace.yaml")),
            env=variables,
            cwd=project_root(),
        )
        try:
            return dagster.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            stop(dagster)
