"""Errors that tell a person what to do, without a traceback."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console

from cdn_pipeline.settings import ConfigurationError

_errors = Console(stderr=True, soft_wrap=True)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def explained(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Tells the command's expected errors in a line and ends it with status 2."""

    @wraps(command)
    def explained_command(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from sqlalchemy.exc import OperationalError

        from cdn_pipeline.catalog.embedded import EmbeddedPostgresError
        from cdn_pipeline.catalog.migrate import CatalogOutdatedError
        from cdn_pipeline.collections import UnknownRecipeError
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
            UnknownRecipeError,
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

    return explained_command
