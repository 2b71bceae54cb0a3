"""Errors that tell a person what to do, without a traceback."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from cdn_pipeline.settings import ConfigurationError

_errors = Console(stderr=True, soft_wrap=True)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def explained(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Tells the command's expected errors in a line and ends it with status 2."""
    return _explained(command, status=2)


def explained_with_status_1(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Likewise, for a command whose status 2 has a meaning of its own."""
    return _explained(command, status=1)


def _explained(command: Callable[_P, _T], *, status: int) -> Callable[_P, _T]:
    @wraps(command)
    def explained_command(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from sqlalchemy.exc import OperationalError

        from cdn_pipeline.catalog.embedded import EmbeddedPostgresError
        from cdn_pipeline.catalog.migrate import CatalogOutdatedError
        from cdn_pipeline.collections import UnknownRecipeError
        from cdn_pipeline.demo.photographs import PhotographsMissingError
        from cdn_pipeline.demo.processes import ChildFailedError
        from cdn_pipeline.sources.app_database import SourceSchemaError
        from cdn_pipeline.store.objects import StoreUnavailable
        from cdn_pipeline.upkeep.clean_up import WrongCatalogError
        from cdn_pipeline.upkeep.rebuild import DamagedTombstoneError
        from cdn_pipeline.upkeep.rollback_drill import DrillRefusedError
        from cdn_pipeline.upkeep.verify import WrongStoreError

        try:
            return command(*args, **kwargs)
        except (
            CatalogOutdatedError,
            ChildFailedError,
            ConfigurationError,
            DamagedTombstoneError,
            DrillRefusedError,
            EmbeddedPostgresError,
            PhotographsMissingError,
            SourceSchemaError,
            StoreUnavailable,
            UnknownRecipeError,
            WrongCatalogError,
            WrongStoreError,
        ) as error:
            _tell(f"{type(error).__name__}:", str(error))
            raise typer.Exit(status) from error
        except OperationalError as error:
            advice = "check CATALOG_DATABASE_URL and SOURCE_DATABASE_URL"
            _tell("The database does not answer", f"({advice}): {' '.join(str(error.orig).split())}")
            raise typer.Exit(status) from error
        except OSError as error:
            _tell("The operating system refuses:", str(error))
            raise typer.Exit(status) from error

    return explained_command


def _tell(what: str, reason: str) -> None:
    _errors.print(Text.assemble((what, "red"), " ", reason))
