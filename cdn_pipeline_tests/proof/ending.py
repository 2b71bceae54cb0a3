"""How every example ends: troubles cease, and then each image has to get where it belongs."""

from datetime import timedelta
from functools import partial

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.holds import restore_queue
from cdn_pipeline.queue.states import ImageStatus, Stage
from cdn_pipeline.upkeep.rollout import resume_rollout
from cdn_pipeline_tests.proof.driver import ROLLED_OUT, Driver
from cdn_pipeline_tests.proof.parts import Fate
from cdn_pipeline_tests.proof.snapshot import Row, is_open
from cdn_pipeline_tests.proof.source import BEST, LESSER, Which

A_DAY = timedelta(days=1)


def all_ends_well(driver: Driver, rolled_out: set[str]) -> None:
    """A worker begins anew, the host answers again, held jobs come back, fresh URLs arrive."""
    for name in sorted(driver.workers):
        driver.kill(name)
    driver.start("A", frozenset(Stage))
    driver.world.source.recover()
    driver.execute(partial(restore_queue, collection=driver.collection))
    for recipe in sorted(rolled_out):
        driver.execute(partial(resume_rollout, collection=driver.collection, recipe_name=recipe))
    for _ in range(
        3
    ):  # what is in the queue; a check that gives 404; another with a fresh URL, and the picture is gone
        _sign_all(driver)
        _finish(driver)
    _check_ends(driver)
    driver.reopen(from_originals=False, force=True)
    _finish(driver)
    driver.reopen(from_originals=True, force=False)
    _finish(driver)
    _check_all_done_again(driver, rolled_out)


def _sign_all(driver: Driver) -> None:
    for image, rows in driver.world.source.rows.items():
        if rows:
            driver.write_row(image, Which.SAME, (LESSER, BEST), 30 * A_DAY)
            driver.record(driver.look(rows[-1]))


def _finish(driver: Driver) -> None:
    """Works until no job is open. A day later every lease has ended, and every retry is due."""
    for _ in range(20):
        driver.clock.advance(1.3 * A_DAY)
        driver.release_dead_leases()
        driver.open_checks()
        driver.work("A", Fate())
        driver.open_rollout_jobs()  # after the checks: another picture takes away what was rolled out
        driver.work("A", Fate())
        if not any(is_open(job) for job in driver.now.jobs.values()):
            return
    raise AssertionError("jobs that never end")


def _check_ends(driver: Driver) -> None:
    """Every image shows its newest picture, or has failed for a reason that lasts."""
    for image in driver.now.images.values():
        status, kind = image["processing_status"], image["failure_kind"]
        if status == ImageStatus.COMPLETED:
            _check_newest(driver, image)
        elif _is_gone(driver, image):
            assert (status, kind) == (ImageStatus.FAILED, FailureKind.SOURCE_GONE)
        else:
            assert status == ImageStatus.FAILED
            assert kind in (FailureKind.IMAGE_CORRUPT, FailureKind.SOURCE_GONE)


def _check_all_done_again(driver: Driver, rolled_out: set[str]) -> None:
    """After an operator's retry every image shows its newest picture, as the newest recipes make it."""
    formats = {INSTAGRAM.recipe.format} | {ROLLED_OUT.format for name in rolled_out if name == ROLLED_OUT.name}
    for image in driver.now.images.values():
        if image["processing_status"] == ImageStatus.COMPLETED:
            _check_newest(driver, image)
            made_by = {(each["recipe"], each["recipe_version"]) for each in _visible(driver, image)}
            newest = {(each.name, each.version) for each in driver.collection.recipes if each.format in formats}
            assert made_by >= newest
        else:
            assert _is_gone(driver, image)
            assert image["failure_kind"] in (FailureKind.SOURCE_GONE, FailureKind.SOURCE_URL_404)


def _check_newest(driver: Driver, image: Row) -> None:
    source = driver.world.source
    (shown,) = {source.pictures[each["original_sha256"]] for each in _visible(driver, image)}
    assert shown.identity == image["identity"]
    assert _is_gone(driver, image) or shown == source.newest(image["identity"], BEST)


def _visible(driver: Driver, image: Row) -> list[Row]:
    return list(driver.now.visible(image["id"]).values())


def _is_gone(driver: Driver, image: Row) -> bool:
    return image["identity"] in driver.world.source.gone
