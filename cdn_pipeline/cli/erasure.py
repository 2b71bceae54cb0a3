"""`cdn-pipeline erase`: take an owner or a picture down, see how erasures stand, finish them, lift them."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import typer
from rich.console import Console

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.sections import add_row, as_text, counted, new_table, print_lines, print_title
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.lookup import find_images
from cdn_pipeline.queue.erasures import Erasure, ErasureState, list_erasures
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.erase import Eraser, LiftRefusedError, Target
from cdn_pipeline.upkeep.erasure_plan import Plan, Standing, erasures_of, plan_erasure

_STATUS = {ErasureState.DONE: 0, ErasureState.LIFTED: 0, ErasureState.PURGE_PENDING: 2, ErasureState.OPEN: 1}
_SHOWN = 20  # paths


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asks for: an owner's id, or else what `find_images` understands as one picture."""

    owner_id: str | None
    picture: str | None
    requested_by: str
    reason: str

    @property
    def subject(self) -> str:
        """Whichever was given; an id is written as the catalog writes it."""
        subject = (self.owner_id or self.picture or "").strip()
        try:
            return str(uuid.UUID(subject)) if len(subject) == len(str(uuid.UUID(int=0))) else subject
        except ValueError:
            return subject


def erase(settings: Settings, console: Console, request: Request, *, dry_run: bool, yes: bool) -> int:
    """Erases what is asked for, or goes on with an earlier erasure of it; returns the exit status."""
    with open_catalog(settings) as catalog:
        with catalog.connect() as connection:
            target = _target(connection, console, request)
            earlier = erasures_of(connection, INSTAGRAM, request.subject)
            plan = plan_erasure(connection, INSTAGRAM, target) if target else None
        if target is None and not earlier:
            return 1
        if plan:
            _print_plan(console, plan)
        if dry_run:
            return 0
        if not yes:
            typer.confirm("This cannot be undone. Erase?", abort=True)
        eraser = Eraser.of(settings, catalog)
        if target:
            erasure = eraser.erase(target, requested_by=request.requested_by, reason=request.reason)
        else:
            erasure = eraser.go_on(earlier[0].erasure_id)
        _print_result(console, settings, eraser, erasure)
        return _STATUS[erasure.state]


def _target(connection: sa.Connection, console: Console, request: Request) -> Target | None:
    """What is to be erased; None, with words about it, if there is no such picture or more than one is meant."""
    if request.owner_id is not None:
        try:
            return Target(request.subject)
        except ValueError as error:
            console.print(as_text(f"There can be no such owner: {error}."))
            return None
    ids = find_images(connection, INSTAGRAM, request.subject).image_ids
    rows = connection.execute(_PICTURES, {"ids": list(ids)}).all()
    if not rows:
        console.print(as_text(f"The catalog has no image of {request.subject}."))
        return None
    if len(rows) > 1:
        console.print(as_text(f"{request.subject} means {counted(len(rows), 'picture')}: name one, or use --owner."))
        return None
    return Target(rows[0].owner_id, tuple(ids))


_PICTURES = sa.text("""
    SELECT owner_id, identity FROM cdn_image_assets WHERE id = ANY(:ids) GROUP BY owner_id, identity
""")


def _print_plan(console: Console, plan: Plan) -> None:
    console.print(
        as_text(
            f"To go: {counted(plan.images, 'image')} with {counted(len(plan.paths), 'rendition')} "
            f"and {counted(len(plan.originals), 'original')}."
        )
    )
    print_lines(console, plan.paths[:_SHOWN])
    if len(plan.paths) > _SHOWN:
        print_lines(console, [f"and {len(plan.paths) - _SHOWN:,} more"])
    if plan.shared:
        console.print(as_text(f"To stay, because other images refer to it: {counted(len(plan.shared), 'object')}."))
    if not plan.images:
        console.print("The catalog has no image of it; a tombstone keeps out what may come.")


def _print_result(console: Console, settings: Settings, eraser: Eraser, erasure: Erasure) -> None:
    match erasure.state:
        case ErasureState.DONE:
            console.print(
                as_text(
                    f"Erased {counted(erasure.images, 'image')}: {counted(erasure.renditions, 'rendition')} and "
                    f"{counted(erasure.originals, 'original')} are gone from the stores, and "
                    f"{counted(erasure.kept, 'shared object')} stayed. The cache was purged."
                )
            )
        case ErasureState.PURGE_PENDING:
            console.print(as_text(f"Purge pending: {erasure.problem}. The stores no longer have it; caches may."))
            console.print("Purge by prefix in Cloudflare's dashboard, or run this again once it can be asked:")
            print_lines(console, eraser.purge_prefixes(erasure.id))
        case _:
            console.print(as_text(f"Not finished: {erasure.problem}. Run it again: it goes on where it was."))
    console.print(as_text(_words_on_cdn(erasure, settings)))
    days = settings.browser_cache_days
    console.print(as_text(f"Browsers that have shown it may keep it for {counted(days, 'day')} (BROWSER_CACHE_DAYS)."))


def _words_on_cdn(erasure: Erasure, settings: Settings) -> str:
    where = settings.public_base_url
    match erasure.cdn_verified:
        case True:
            return f"Verified: {where} no longer serves it."
        case False:
            return f"{where} still serves some of it."
        case None:
            return f"Not verified: nothing of it could be asked for at {where}."


def show(settings: Settings, console: Console) -> int:
    """How erasures stand; exit status 1 if one is open."""
    with open_catalog(settings) as catalog, catalog.connect() as connection:
        erasures = list_erasures(connection, INSTAGRAM)
    if not erasures:
        console.print("Nothing was erased yet.")
        return 0
    print_title(console, "Erasures")
    numbers = ("images", "renditions", "originals")
    table = new_table("asked", "state", "owner", "scope", *numbers, "by", "reason", "problem", numbers=numbers)
    for each in erasures:
        asked = f"{each.created_at:%Y-%m-%d %H:%M}"
        counts = (each.images, each.renditions, each.originals)
        add_row(
            table, asked, each.state, each.owner_id, each.scope, *counts, each.requested_by, each.reason, each.problem
        )
    console.print(table)
    return int(any(each.state is ErasureState.OPEN for each in erasures))


def resume(settings: Settings, console: Console) -> int:
    """Goes on with all erasures that are not done; returns the exit status."""
    with open_catalog(settings) as catalog:
        with catalog.connect() as connection:
            unfinished = list_erasures(connection, INSTAGRAM, unfinished=True)
        if not unfinished:
            console.print("Every erasure is done.")
        eraser = Eraser.of(settings, catalog)
        statuses = []
        for each in unfinished:
            print_title(console, f"{each.scope} {each.owner_id}, asked for by {each.requested_by}")
            erasure = eraser.go_on(each.id)
            _print_result(console, settings, eraser, erasure)
            statuses.append(_STATUS[erasure.state])
    return _worst(statuses)


def _worst(statuses: Sequence[int]) -> int:
    return 1 if 1 in statuses else max(statuses, default=0)


def _words_on(standing: Standing) -> str:
    what = "all of it" if standing.scope == "owner" else "some of its images"
    return f"owner {standing.owner_id}: {what}, {counted(standing.tombstones, 'tombstone')}"


def lift(settings: Settings, console: Console, request: Request, *, yes: bool) -> int:
    """Lets in again what was erased; returns the exit status."""
    with open_catalog(settings) as catalog:
        with catalog.connect() as connection:
            standing = erasures_of(connection, INSTAGRAM, request.subject)
        if not standing:
            console.print(as_text(f"No tombstone stands for {request.subject}."))
            return 1
        print_lines(console, [_words_on(each) for each in standing])
        if len(standing) > 1:
            console.print(as_text("Name what only one of these took down: an image by its id, or the owner."))
            return 1
        if not yes:
            typer.confirm("The next scan will mirror it again. Lift the tombstone?", abort=True)
        try:
            lifted = Eraser.of(settings, catalog).lift(standing[0].erasure_id)
        except LiftRefusedError as error:
            console.print(as_text(f"{error}."))
            return 1
    console.print(as_text(f"Lifted {counted(lifted, 'tombstone')}; the next scan of all source rows lets it in."))
    return 0
