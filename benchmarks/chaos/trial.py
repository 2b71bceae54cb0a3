"""One disaster in a world of its own, and the judgement on it."""

from random import Random

from benchmarks.chaos.audit import complaints, dangling
from benchmarks.chaos.disasters import Disaster
from benchmarks.chaos.place import Place
from benchmarks.chaos.world import RunHangsError, World
from cdn_pipeline.demo.processes import tail


def survives(place: Place, disaster: Disaster, number: int, seed: int) -> tuple[str, list[str]]:
    """What was seen, and what is wrong; nothing is if the disaster was survived.

    Raises:
        Impossible: it cannot be arranged here.
    """
    place.origin_front.rest()
    place.store_front.rest()
    with disaster.opened(place, f"chaos{number}") as world:
        try:
            return _outlived(world, disaster, Random(f"{seed} {disaster.name}"))
        except RunHangsError as error:
            return str(error), [f"hangs: {error}", tail(world.log)]


def _outlived(world: World, disaster: Disaster, chance: Random) -> tuple[str, list[str]]:
    seen = disaster.strike(world, chance)
    wrong = [*world.harm, *dangling(world)]
    kinds = ", ".join(f"{number} {kind}" for kind, number in world.kinds().items())
    seen = f"{seen}; {world.visible()} visible" + (f", {kinds}" if kinds else "")
    status = world.heal()
    seen = f"{seen}; then {world.visible()}"
    if status != 0:
        wrong += [f"the run afterwards ended with status {status}", tail(world.log)]
    return seen, wrong + complaints(world)
