"""`rollout`: jobs for every published image, seen, paused and resumed."""

import pytest
import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import RUN, open_jobs, outcome, publish, reference, rolled_out, see, take

AVIF = "avif_thumbnails"


@pytest.fixture(autouse=True)
def _published(connection: sa.Connection) -> None:
    for number in range(3):
        see(connection, reference(image=str(number), shard=f"0{number}"))
        publish(connection)


def test_a_rollout_opens_a_job_for_every_published_image_and_says_what_happens_next(
    invoke: Invoke, connection: sa.Connection
) -> None:
    result = invoke("rollout", AVIF)
    assert result.exit_code == 0, result.output
    assert f"Opened 3 jobs of {AVIF}" in result.output
    assert "dagster job execute" in result.output
    assert [job["rollout"] for job in open_jobs(connection)] == [AVIF] * 3


def test_repeated_it_opens_nothing_more(invoke: Invoke) -> None:
    invoke("rollout", AVIF)
    assert "no job was opened" in invoke("rollout", AVIF).output


def test_without_a_recipe_it_shows_how_far_rollouts_are_and_which_recipes_there_are(invoke: Invoke) -> None:
    before = invoke("rollout").output
    assert "No recipe was rolled out yet" in before
    assert "webp_thumbnails" in before
    invoke("rollout", AVIF)
    words = invoke("rollout").output.split()
    assert words[words.index(AVIF) :][:9] == [AVIF, "v3", "rolling", "out", "0", "3", "0", "0", "3"]


def test_it_can_be_paused_and_resumed(invoke: Invoke, connection: sa.Connection) -> None:
    invoke("rollout", AVIF)
    assert "3 jobs on hold" in invoke("rollout", AVIF, "--pause").output
    assert take(connection) == []
    assert "paused" in invoke("rollout").output
    assert "0 jobs back" in invoke("queue", "restore").output
    assert "3 jobs" in invoke("rollout", AVIF, "--resume").output
    assert len(take(connection)) == 3


def test_starting_a_paused_rollout_says_how_many_jobs_it_lets_go(invoke: Invoke) -> None:
    invoke("rollout", AVIF)
    invoke("rollout", AVIF, "--pause")
    result = invoke("rollout", AVIF)
    assert f"Opened 0 jobs of {AVIF} and let 3 jobs go that had been on hold." in result.output
    assert "dagster job execute" in result.output


def test_a_rollout_is_over_when_all_is_done_and_not_when_nothing_is_open(
    invoke: Invoke, connection: sa.Connection
) -> None:
    def state() -> str:
        words = invoke("rollout").output.split()
        return " ".join(words[words.index(AVIF) + 2 :][:2])

    invoke("rollout", AVIF)
    assert state() == "rolling out"
    invoke("queue", "hold", "--yes")
    assert state() == "on hold"
    invoke("queue", "restore")
    first, *others = take(connection)
    settle(connection, RUN, [outcome(first, Verdict.FAILED, Stage.ENCODE, failure=FailureKind.OUT_OF_MEMORY)])
    assert state() == "rolling out"
    settle(connection, RUN, [rolled_out(job) for job in others])
    assert state() == "rolled out"


def test_words_in_brackets_are_told_as_they_are(invoke: Invoke) -> None:
    result = invoke("rollout", "[/x]")
    assert result.exit_code == 2
    assert "UnknownRecipeError: instagram has no recipe '[/x]'" in result.output


def test_an_unknown_recipe_names_those_that_exist(invoke: Invoke) -> None:
    result = invoke("rollout", "jpegxl")
    assert result.exit_code == 2
    assert AVIF in result.output
    assert "Traceback" not in result.output


def test_pausing_what_never_began_says_so(invoke: Invoke) -> None:
    result = invoke("rollout", AVIF, "--pause")
    assert result.exit_code == 2
    assert "start it first" in result.output


@pytest.mark.parametrize(
    "options", [("--pause",), ("--force",), (AVIF, "--pause", "--resume"), (AVIF, "--pause", "--force")]
)
def test_options_that_make_no_sense_are_refused(invoke: Invoke, options: tuple[str, ...]) -> None:
    assert invoke("rollout", *options).exit_code == 2
