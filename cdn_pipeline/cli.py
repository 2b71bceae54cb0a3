"""The command line: `cdn-pipeline --help`."""

import signal
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console

from cdn_pipeline.settings import ConfigurationError, load_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Mirrors images whose URLs expire to immutable URLs on a CDN. Configured by the environment and `.env`.",
)
_errors = Console(stderr=True, soft_wrap=True)

_P = ParamSpec("_P")
_T = TypeVar("_T")

Port = Annotated[int, typer.Option(help="The port on 127.0.0.1.", min=1, max=65535)]


def _explained(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Errors that tell a person what to do are told without a traceback."""

    @wraps(command)
    def explained(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from sqlalchemy.exc import OperationalError

        from cdn_pipeline.catalog.embedded import EmbeddedPostgresError
        from cdn_pipeline.catalog.migrate import CatalogOutdatedError
        from cdn_pipeline.demo.photographs import PhotographsMissingError
        from cdn_pipeline.demo.processes import ChildFailedError
        from cdn_pipeline.store.objects import StoreUnavailable

        try:
            return command(*args, **kwargs)
        except (
            CatalogOutdatedError,
            ChildFailedError,
            ConfigurationError,
            EmbeddedPostgresError,
            PhotographsMissingError,
            StoreUnavailable,
        ) as error:
            _errors.print(f"[red]{type(error).__name__}:[/]", str(error), highlight=False, markup=True)
            raise typer.Exit(2) from error
        except OperationalError as error:
            advice = "check CATALOG_DATABASE_URL and SOURCE_DATABASE_URL"
            reason = " ".join(str(error.orig).split())
            _errors.print(f"[red]The database does not answer[/] ({advice}):", reason, highlight=False)
            raise typer.Exit(2) from error
        except OSError as error:
            _errors.print("[red]The operating system refuses:[/]", str(error), highlight=False)
            raise typer.Exit(2) from error

    return explained


@app.command()
@_explained
def migrate() -> None:
    """Bring the catalog's schema up to date.

    Run it after every upgrade and whenever CDN_BASE_URL changes. The embedded database does it by itself.
    """
    from cdn_pipeline.catalog import migrate as migrations
    from cdn_pipeline.catalog.sessions import open_unmigrated_catalog

    settings = load_settings()
    with open_unmigrated_catalog(settings) as engine:
        migrations.migrate(engine, settings.public_base_url)
    typer.echo(f"The catalog is up to date; its URLs begin with {settings.public_base_url}.")


@app.command()
@_explained
def serve(port: Port = 8000) -> None:
    """Serve renditions from a local folder store, with the headers that the CDN sends."""
    import uvicorn

    from cdn_pipeline.api.app import create_app
    from cdn_pipeline.demo.processes import require_free

    require_free(port)
    uvicorn.run(create_app(load_settings()), host="127.0.0.1", port=port, log_level="warning", access_log=False)


@app.command()
@_explained
def demo() -> None:
    """Mirror several hundred photographs from URLs that die, on this machine alone, and prove it.

    Everything lies under `var/`; run it again and it finds nothing to do.
    """
    from cdn_pipeline.demo.show import Demo

    if not Demo(load_settings(), Console(soft_wrap=True)).play():
        raise typer.Exit(1)


@app.command()
@_explained
def dev(port: Annotated[int, typer.Option(help="The port of Dagster's UI on 127.0.0.1.")] = 3000) -> None:
    """Open Dagster's UI, with the demo's origin and the local picture server beside it.

    With a real SOURCE_DATABASE_URL there is no origin; with a remote store there is no picture server.
    """
    from cdn_pipeline.demo.dev import run_dev

    raise typer.Exit(run_dev(load_settings(), port))


def main() -> None:
    """The console script. SIGTERM ends a command in order, as Ctrl-C does, so that it leaves no process behind."""
    signal.signal(signal.SIGTERM, _end)
    app()


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
