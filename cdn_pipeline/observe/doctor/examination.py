"""All checks, in the order of a request's way: what a later one needs comes first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cdn_pipeline.observe.doctor import (
    catalog,
    configuration,
    dagster_home,
    delivery,
    machine,
    services,
    source,
    source_layout,
    stores,
)
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, State, failed, skipped
from cdn_pipeline.observe.readings import Reading

_SECONDS = 30.0  # longer than any part's own time limit, the provider's apart
_PROVIDER_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Check:
    """One look at one part; it is skipped if one of those that it `needs` has failed or was skipped."""

    name: str
    look: Callable[[Deployment], Finding]
    needs: Sequence[str] = ()
    seconds: float = _SECONDS


@dataclass(frozen=True, slots=True)
class Checked:
    """A check and what it found."""

    name: str
    finding: Finding


CHECKS = (
    Check("configuration", configuration.look_at_settings),
    Check("variables", configuration.look_at_variables),
    Check("python", machine.look_at_python),
    Check("machine", machine.look_at_machine),
    Check("disks", machine.look_at_disks, ["configuration"]),
    Check("catalog", catalog.look_at_catalog, ["configuration"]),
    Check("catalog session", catalog.look_at_session, ["catalog"]),
    Check("catalog rights", catalog.look_at_rights, ["catalog"]),
    Check("catalog schema", catalog.look_at_schema, ["catalog", "catalog rights"]),
    Check("clock", catalog.look_at_clock, ["catalog"]),
    Check("source", source.look_at_source, ["configuration"]),
    Check("source tables", source.look_at_tables, ["source"]),
    Check("source indexes", source_layout.look_at_indexes, ["source tables"]),
    Check("source rows", source.look_at_rows, ["source tables"]),
    Check("source shards", source_layout.look_at_shards, ["source tables"]),
    Check("renditions store", stores.look_at_renditions, ["configuration"]),
    Check("originals store", stores.look_at_originals, ["configuration"]),
    Check("CDN", delivery.look_at_cdn, ["catalog schema"]),
    Check("originals private", stores.look_at_privacy, ["originals store"]),
    Check("Dagster home", dagster_home.look_at_home),
    Check("Dagster daemon", dagster_home.look_at_daemon, ["catalog schema"]),
    Check("schedules", dagster_home.look_at_schedules, ["catalog schema"]),
    Check("Cloudflare token", services.look_at_cloudflare, ["configuration"]),
    Check("Cloudflare purge", services.look_at_purge, ["Cloudflare token"]),
    Check("Cloudflare figures", services.look_at_figures, ["Cloudflare token"]),
    Check("provider", services.look_at_provider, ["configuration"], _PROVIDER_SECONDS),
    Check("alerts", services.look_at_alerts, ["configuration"]),
    Check("admin token", services.look_at_admin_token, ["configuration"]),
)


def examine(deployment: Deployment, checks: Sequence[Check] = CHECKS) -> Iterator[Checked]:
    """Makes the checks one after the other and yields each as it is done. Raises nothing because a part is ill."""
    states: dict[str, State] = {}
    for check in checks:
        lacking = next((name for name in check.needs if states[name] in (State.FAILED, State.SKIPPED)), None)
        finding = _look(check, deployment) if lacking is None else skipped(f"because of “{lacking}”")
        states[check.name] = finding.state
        yield Checked(check.name, finding)


def _look(check: Check, deployment: Deployment) -> Finding:
    """What the check finds, within its time limit; one that hangs leaves a thread behind."""
    try:
        return Reading(lambda: check.look(deployment), fresh_for=0).ask().result(check.seconds)
    except TimeoutError:
        return failed(f"no answer within {check.seconds:.0f} s", "Look whether it hangs, or whether the network does.")
    except Exception as error:
        # Of a database's error the words without the statement: it has bound values.
        words = " ".join(str(getattr(error, "orig", error)).split())
        return failed(f"{type(error).__name__}: {words}", "If these words do not say what to do, report them.")
