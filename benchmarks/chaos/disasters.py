"""The disasters. Each strikes a world during a run, or several, and ends when that run has ended."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random

import psutil
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster_graphql import DagsterGraphQLClient

from benchmarks.chaos import faults
from benchmarks.chaos.audit import dangling, orphaned
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.place import Place
from benchmarks.chaos.world import RANGE, RunHangsError, World, kill_tree, opened_world
from cdn_pipeline.demo.app_database import resign_all
from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.demo.signing import Signer

KILLS_PER_WORLD = 5
# Kills are spread over the work, however fast the machine is: at most so many images, and an instant.
_IMAGES_BETWEEN_KILLS = 8
_INSTANTS_SECONDS = 0.5  # two batches of outcomes are written in it
_START_SECONDS = 4.0  # a run needs about so long until it begins to work
_OUTAGE_SECONDS = 6.0  # retries of one call end after some 4, so that images fail
_SHARE = 0.3
_FLAP_SECONDS = 0.3  # short enough to meet every run several times, images being downloaded within 2 s
_MIRRORED_BEFORE = 3  # images that are visible when a run is struck: it is in the middle then
_TERMINATION_SECONDS = 60.0  # what dagster.yaml grants a run that is cancelled
_SMALL_DISK = "4m"  # two thirds of what a world needs


class Impossible(Exception):
    """The disaster cannot be arranged on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Disaster:
    """`strike` does all the harm; what it returns is what was seen at first glance, in words."""

    name: str
    strike: Callable[[World, Random], str]
    opened: Callable[[Place, str], AbstractContextManager[World]] = opened_world


# -- processes --


def kills(number: int, *, whole_tree: bool) -> Callable[[World, Random], str]:
    """`kill -9` of so many runs, one after another, at random instants: one in five while it starts."""

    def strike(world: World, chance: Random) -> str:
        world.place.origin_front.fault = faults.slowly(0.5)  # else the work is done before most of the kills
        for n in range(number):
            with world.begun_run() as process:
                if n % 5 == number // 2:
                    time.sleep(chance.uniform(0, _START_SECONDS))
                else:
                    world.wait_for_work(process, world.visible() + chance.randrange(_IMAGES_BETWEEN_KILLS))
                    time.sleep(chance.uniform(0, _INSTANTS_SECONDS))
                _kill(process, whole_tree=whole_tree)
            world.harm += [*orphaned(world), *dangling(world)]
        return f"{number} runs killed"

    return strike


def _kill(process: "subprocess.Popen[bytes]", *, whole_tree: bool) -> None:
    if whole_tree:
        kill_tree(process)
    else:
        process.kill()
        process.wait()


def worker_killed(world: World, chance: Random) -> str:
    """`kill -9` of every child of a run, three times."""
    world.place.origin_front.fault = faults.slowly(0.5)
    killed = 0
    with world.begun_run() as process:
        for _ in range(3):
            world.wait_for_work(process)
            time.sleep(chance.uniform(0, 1))
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                killed += len(children)
                for child in children:
                    child.kill()
        status = world.wait(process)
    return f"{killed} children killed, exit status {status}"


def terminated(world: World, chance: Random) -> str:
    """SIGTERM in the middle."""
    world.place.origin_front.fault = faults.slowly(0.5)
    with world.begun_run() as process:
        world.wait_for_work(process, _MIRRORED_BEFORE)
        process.terminate()
        began = time.monotonic()
        status = world.wait(process)
    return f"exit status {status} {time.monotonic() - began:.1f} s later"


def terminated_in_the_ui(world: World, chance: Random) -> str:
    """ "Launch run" and then "Terminate" in Dagster's UI: what its buttons ask of the webserver."""
    world.place.origin_front.fault = faults.slowly(0.5)
    port = free_port(0)
    webserver = python("-m", "dagster_webserver", "-m", "cdn_pipeline.definitions", "-h", "127.0.0.1", "-p", str(port))
    url = f"http://127.0.0.1:{port}/server_info"
    with running(webserver, world.folder / "webserver.log", ready_url=url, environment=world.environment) as process:
        client = DagsterGraphQLClient("127.0.0.1", port_number=port)
        run_id = client.submit_job_execution("publish_images", tags=RANGE)
        world.wait_for_work(process, _MIRRORED_BEFORE)
        client.terminate_run(run_id)
        began = time.monotonic()
        while (status := client.get_run_status(run_id)) not in FINISHED_STATUSES:
            if time.monotonic() - began > _TERMINATION_SECONDS:
                raise RunHangsError(f"a run that was terminated in the UI is still {status.value}")
            time.sleep(0.2)
    return f"{status.value} {time.monotonic() - began:.1f} s later"


# -- databases and disks --


def postgres_restarted(world: World, chance: Random) -> str:
    """Postgres gone at once, as in a crash, and back some seconds later."""
    world.place.origin_front.fault = faults.slowly(0.5)
    away = chance.uniform(1, 5)
    with world.begun_run() as process:
        world.wait_for_work(process, _MIRRORED_BEFORE)
        world.place.stop_postgres()
        time.sleep(away)
        world.place.start_postgres()
        status = world.wait(process)
    return f"away for {away:.1f} s, exit status {status}"


def clock_jumps(world: World, chance: Random) -> str:
    """The catalog's clock an hour ahead, and an hour back, while images are in hand."""
    world.place.origin_front.fault = faults.slowly(0.5)
    hour = timedelta(hours=1)
    with world.begun_run() as process:
        for jump in (hour, -2 * hour, hour):
            world.wait_for_work(process)
            time.sleep(1)
            world.move_clock(jump)
        status = world.wait(process)
    return f"exit status {status}"


@contextmanager
def on_a_small_disk(place: Place, name: str) -> Iterator[World]:
    """A world whose stores are folders on a file system that is too small."""
    disk = place.folder / f"{name}-disk"
    disk.mkdir()
    _mount("mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "chaos", str(disk))
    try:
        with opened_world(place, name, stores=disk) as world:
            yield world
    finally:
        _mount("umount", str(disk))


def disk_full(world: World, chance: Random) -> str:
    """The file system of the stores fills up during a run, and is made larger when that has been ended."""
    disk = world.place.folder / f"{world.name}-disk"
    with world.begun_run() as process:
        world.wait_for_work(process)
        while process.poll() is None and psutil.disk_usage(str(disk)).free > 100_000:
            time.sleep(0.05)
        time.sleep(5)  # in which the run finds out
        status = _ended(world, process)
    _mount("mount", "-o", "remount,size=64m", str(disk))
    return f"exit status {status}"


def _mount(*command: str) -> None:
    if sys.platform != "linux":
        raise Impossible("small file systems are made by Linux here")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Impossible(f"{command[0]} is not allowed: {done.stderr.strip()}")


def _ended(world: World, process: "subprocess.Popen[bytes]") -> int:
    """The exit status of a run that would sit the outage out for two minutes: it is asked to end now."""
    process.terminate()
    return world.wait(process)


# -- store and origin --


def store_fault(fault: Fault, outage_seconds: float = _OUTAGE_SECONDS) -> Callable[[World, Random], str]:
    """Some seconds of nothing but this, and then a share of it, for a whole run."""

    def strike(world: World, chance: Random) -> str:
        front = world.place.store_front
        front.fault = faults.at_first(fault, outage_seconds, then=faults.sometimes(fault, _SHARE, chance))
        return _spoilt(world.run(), front.spoilt, "answers of the store")

    return strike


def store_silent(world: World, chance: Random) -> str:
    """A few requests are never answered: each costs a call its time limit."""
    front = world.place.store_front
    front.fault = faults.sometimes(faults.hangs, 0.05, chance)
    return _spoilt(world.run(), front.spoilt, "answers of the store")


def origin_fault(make: Callable[[Random], Fault]) -> Callable[[World, Random], str]:
    """The origin misbehaves for a whole run."""

    def strike(world: World, chance: Random) -> str:
        front = world.place.origin_front
        front.fault = make(chance)
        return _spoilt(world.run(), front.spoilt, "answers of the origin")

    return strike


def redirect_loops(world: World, chance: Random) -> str:
    """Every source URL leads back to itself. Only fresh URLs are tried again: the source gets them afterwards."""
    seen = origin_fault(lambda _: faults.redirects_to_itself)(world, chance)
    resign_all(world.source, world.signer)
    return seen


def no_such_host(world: World, chance: Random) -> str:
    """Every source URL names a host that no name server knows, until the source has others."""
    resign_all(world.source, Signer("http://cdn.nowhere.invalid", world.signer.secret))
    status = world.run()
    resign_all(world.source, world.signer)
    return f"exit status {status}"


def _spoilt(status: int, spoilt: int, what: str) -> str:
    return f"{spoilt} {what} spoilt, exit status {status}"


SERVER_ERROR = faults.answers(500)
SLOW_DOWN = faults.answers(503, faults.SLOW_DOWN, {"Content-Type": "application/xml"})
TOO_MANY = faults.answers(429, headers={"Retry-After": "30"})

DISASTERS: Sequence[Disaster] = (
    *(Disaster(f"kill -9, runs {n} to {n + 4}", kills(KILLS_PER_WORLD, whole_tree=False)) for n in (1, 6, 11)),
    Disaster("kill -9, runs 16 to 20, with children", kills(KILLS_PER_WORLD, whole_tree=True)),
    Disaster("kill -9 of workers", worker_killed),
    Disaster("SIGTERM", terminated),
    Disaster("terminated in the UI", terminated_in_the_ui),
    Disaster("Postgres stopped and started", postgres_restarted),
    Disaster("clock an hour ahead, an hour back", clock_jumps),
    Disaster("disk full", disk_full, on_a_small_disk),
    Disaster("store answers 500", store_fault(SERVER_ERROR)),
    Disaster("store answers 503 SlowDown", store_fault(SLOW_DOWN)),
    Disaster("store resets connections", store_fault(faults.resets)),
    Disaster("store lies: 200 without storing", store_fault(faults.lies)),
    Disaster("store does not answer", store_silent),
    Disaster("origin flaps", origin_fault(lambda _: faults.by_turns(faults.resets, _FLAP_SECONDS))),
    Disaster("30 % of the origin's answers are 5xx", origin_fault(lambda c: faults.sometimes(SERVER_ERROR, _SHARE, c))),
    Disaster("origin answers 429 alone", origin_fault(lambda _: TOO_MANY)),
    Disaster("origin drips", origin_fault(lambda _: faults.drips)),
    Disaster("redirect loops", redirect_loops),
    Disaster("DNS failure", no_such_host),
)
