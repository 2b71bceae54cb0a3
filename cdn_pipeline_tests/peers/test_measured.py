import subprocess
import sys

import pytest

from benchmarks.peers.measured import Measured, Round, cpu, cpu_of_children, origin_cpu, play, speed, start_up


def measured(seconds: float) -> Measured:
    return Measured(100, seconds, seconds + 10, cpu_seconds=2 * seconds, origin_cpu_seconds=1)


def test_both_sides_run_by_turns() -> None:
    order: list[str] = []

    def run(side: str) -> Measured:
        order.append(side)
        return measured(1)

    play(lambda: run("ours"), lambda: run("peer"), rounds=3)
    assert order == ["ours", "peer"] * 3


def test_a_ratio_is_of_the_two_runs_of_one_round() -> None:
    rounds = [Round(measured(10), measured(20)), Round(measured(40), measured(60))]
    *_, ratio = speed(rounds, "peer", at_least=1.6)
    assert ratio.values == (2.0, 1.5)
    assert ratio.reached
    assert not speed(rounds, "peer", at_least=1.8)[-1].reached


def test_start_up_is_on_both_clocks_or_on_neither() -> None:
    rounds = [Round(measured(10), measured(30))]
    assert speed(rounds, "peer", at_least=1)[-1].values == (3.0,)
    assert [figure.values for figure in start_up(rounds, "peer")] == [(2.0,), (10.0,), (10.0,)]


def test_cpu_is_per_image_and_the_origin_apart() -> None:
    rounds = [Round(measured(5), measured(10))]
    assert [figure.values for figure in cpu(rounds, "peer", at_most=1)] == [(100.0,), (200.0,), (0.5,)]
    assert [figure.values for figure in origin_cpu(rounds, "peer")] == [(10.0,), (10.0,)]


@pytest.mark.parametrize("code", ["busy()", "import subprocess; subprocess.run([sys.executable, '-c', program])"])
def test_cpu_of_children_counts_them_and_what_they_waited_for(code: str) -> None:
    program = "import time\nwhile time.process_time() < 0.3: pass"
    before = cpu_of_children()
    run = f"import sys\nprogram = {program!r}\ndef busy(): exec(program)\n{code}"
    subprocess.run([sys.executable, "-c", run], check=True)
    assert cpu_of_children() - before >= 0.3
