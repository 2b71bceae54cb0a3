"""`cdn-pipeline cost`: what the month costs."""

import dataclasses
from collections.abc import Iterator

import pydantic_core
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.sections import Fact, add_row, as_text, counted, new_table, print_facts, print_title
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.bill import Bill, read_bill
from cdn_pipeline.observe.cost import MonthlyCost
from cdn_pipeline.observe.traffic import read_traffic
from cdn_pipeline.settings import Settings

_NOT_CONFIGURED = "not configured: set CF_API_TOKEN, CF_ZONE_ID and CF_ACCOUNT_ID"


def show_cost(settings: Settings, console: Console, *, budget: float | None, as_json: bool) -> bool:
    """Shows the bill of the month; returns whether its projection is within the budget, if there is one."""
    budget = settings.monthly_budget_usd if budget is None else budget
    traffic = read_traffic(settings)
    with open_catalog(settings) as engine, engine.connect() as connection:
        bill = read_bill(connection, INSTAGRAM, traffic)
    within = budget is None or bill.projected.total <= budget
    if as_json:
        print(_as_json(bill, budget, within=within))  # noqa: T201  # unwrapped and without colour
    else:
        _print(console, bill, budget, is_configured=traffic is not None)
    return within


def _as_json(bill: Bill, budget: float | None, *, within: bool) -> str:
    facts = dataclasses.asdict(bill)
    facts["so_far"]["total"], facts["projected"]["total"] = bill.so_far.total, bill.projected.total
    facts |= {"budget": budget, "within_budget": within}
    return pydantic_core.to_json(facts, indent=2).decode()


def _print(console: Console, bill: Bill, budget: float | None, *, is_configured: bool) -> None:
    print_facts(console, "What it is made of", _facts(bill, is_configured=is_configured))
    print_title(console, f"{bill.now:%B %Y}, in US dollars ({bill.month_elapsed:.0%} of the month is over)")
    numbers = ("storage", "class A", "class B", "egress", "total")
    table = new_table("", *numbers, numbers=numbers)
    for name, cost in (("so far", bill.so_far), ("projected", bill.projected)):
        add_row(table, name, *_amounts(cost))
    console.print(table)
    console.print()
    prices = bill.prices
    console.print(
        as_text(
            f"R2's prices of {prices.as_of} ({prices.source}): storage {prices.gigabyte_month} $ per GB and month, "
            f"writes (class A) {prices.class_a * 1e6:.2f} $ per million, reads (class B) {prices.class_b * 1e6:.2f} $ "
            f"per million, egress free. R2 gives every account some of each for nothing; that is not deducted here, "
            "so the real bill is lower."
        )
    )
    if budget is not None:
        console.print(_verdict(bill.projected.total, budget))


def _facts(bill: Bill, *, is_configured: bool) -> Iterator[Fact]:
    missing = bill.problem or ("not told by Cloudflare" if is_configured else _NOT_CONFIGURED)
    held = bill.held
    yield "renditions", f"{counted(held.rendition_objects, 'object')}, {decimal(held.rendition_bytes)}"
    yield "originals", f"{counted(held.original_objects, 'object')}, {decimal(held.original_bytes)}"
    yield "class A", f"{bill.operations.class_a:,} writes in the last 30 days, counted by {bill.writes_counted_by}"
    reads = bill.operations.class_b
    yield "class B", Text(missing, "yellow") if reads is None else f"{reads:,} reads in the last 30 days"
    requests = bill.requests
    yield "requests", Text(missing, "yellow") if requests is None else f"{requests:,} of the CDN in the last 30 days"
    time = bill.processor_time
    if time.seconds_per_thousand is None:
        yield "CPU", "nothing was encoded in the last 30 days"
    else:
        yield "CPU", f"{time.seconds_per_thousand:.1f} s of one core to encode 1,000 images; the bill has no machines"
        yield "encoded", f"{counted(time.images, 'image')} in the last 30 days"


def _amounts(cost: MonthlyCost) -> Iterator[str]:
    yield f"{cost.storage:.2f}"
    yield f"{cost.class_a:.2f}"
    yield "not counted" if cost.class_b is None else f"{cost.class_b:.2f}"
    yield "0.00"
    yield f"{cost.total:.2f}"


def _verdict(projected: float, budget: float) -> Text:
    if projected <= budget:
        return Text(f"Within the budget of {budget:.2f} $.", style="green")
    return Text(f"Over the budget of {budget:.2f} $ by {projected - budget:.2f} $.", style="bold red")
