"""SIGTERM and Ctrl-C stop a run politely at any moment, and two processes never work on one run folder."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ARGUMENTS, Record
from fault_injection import Command, Zygote, state_of

from fledge import checkpoints

STOPS = [signal.SIGTERM, signal.SIGINT]
LOOPS = [name for name in ARGUMENTS if name not in ("tokenizer train", "pretrain prepare")]


def middle(command: Command) -> int:
    """The number of the call that makes the folder of the second checkpoint."""
    return next(c.number for c in command.calls if c.path == "checkpoints/.step-000002.partial")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(
            name, number, marks=[] if (name, number) in (("pretrain train", STOPS[0]), ("rlhf reward", STOPS[1])) else
            [pytest.mark.slow],
        )
        for name in LOOPS
        for number in STOPS
    ],
)  # fmt: skip
def test_stopped_within_its_loop_it_writes_a_checkpoint_and_exits_130(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str, number: int
) -> None:
    command, out = command_of(name), tmp_path / "run"
    stopped = zygote.run(command.starting(out), out, at=middle(command), action=number)
    assert stopped.code == 130
    step = checkpoints.step_of(checkpoints.listed(out / "checkpoints")[-1])
    assert f"error: stopped at step {step}; continue with --resume {out}\n" in stopped.said
    assert command.finished_otherwise(out, zygote.run(command.going_on(out), out)) is None
    record(signal.Signals(number).name, name, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_stopped_at_some_call_nothing_is_lost(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str, number: int
) -> None:
    command, problems, ends = command_of(name), dict[str, Any](), dict[str, str | None]()
    window = command.last_checkpoint_and_after()
    chosen = random.Random(f"{name} {number}").sample(window, 8)
    for call in chosen:
        out = tmp_path / str(call.number)
        stopped = zygote.run(command.starting(out), out, at=call.number, action=number)
        problem = command.problem(out, stopped) if stopped.code in (0, 130) else f"{stopped.code}: {stopped.said}"
        state = state_of(out)
        if state not in ends:
            ends[state] = command.finished_otherwise(out, zygote.run(command.going_on(out), out))
        if problem := problem or ends[state]:
            problems[str(call)] = problem
        shutil.rmtree(out, ignore_errors=True)
    record(signal.Signals(number).name, name, len(chosen), len(chosen) - len(problems))
    assert problems == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_stopped_at_random_moments_nothing_is_lost(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command, chance, problems = command_of(name), random.Random(name), {}
    for number in range(6):
        out, stop = tmp_path / str(number), STOPS[number % 2]
        child = zygote.start(command.starting(out), out)
        while not child.calls() and number:  # the first is stopped before it is there
            time.sleep(0.002)
        time.sleep(chance.uniform(0, command.wall_s))  # the moment is what is tested
        os.kill(child.pid, stop)
        stopped = zygote.wait(child)
        is_polite = stopped.code in (0, 130) or (number == 0 and stopped.code == -stop)
        problem = command.problem(out, stopped) if is_polite else f"{stopped.code}: {stopped.said}"
        if problem := problem or command.finished_otherwise(out, zygote.run(command.going_on(out), out)):
            problems[number] = problem
    record("SIGTERM or SIGINT at a random moment", name, 6, 6 - len(problems))
    assert problems == {}


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ARGUMENTS if n != "pretrain train"), "pretrain train"]
)
def test_a_second_process_is_refused_and_the_first_goes_on(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command, out = command_of(name), tmp_path / "run"
    window = command.last_checkpoint_and_after()
    at = window[len(window) // 2].number
    first = zygote.start(command.starting(out), out, at=at, action=signal.SIGSTOP)
    while len(first.calls()) < at:
        time.sleep(0.005)  # watches another process
    resumed = zygote.run([*name.split(), "--resume", str(out)], out)
    begun = zygote.run(command.starting(out), out)
    os.kill(first.pid, signal.SIGCONT)
    assert "in use by another process; wait for it, or stop it" in resumed.said
    assert "exists already and is never overwritten" in begun.said
    assert (resumed.code, begun.code) == (1, 1)
    assert [call.path for call in resumed.calls + begun.calls if call.path != ".lock"] == []
    assert command.finished_otherwise(out, zygote.wait(first)) is None
    record("second process", name, 2, 2)
