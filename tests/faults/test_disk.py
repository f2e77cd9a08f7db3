"""A disk that is full or can't be written: it is said, nothing is lost, and the run goes on when there is room."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ARGUMENTS, Record
from fault_injection import DISK_FULL, Call, Command, Zygote, state_of

from fledge import rundir

NEED_SPACE = ("open", "mkdir", "write", "writev", "fwrite")
FULL = "no space left to write it; free some disk and continue with --resume"


def problem_of(zygote: Zygote, command: Command, out: Path, ends: dict[str, str | None], **fault: int) -> str | None:
    """What is wrong after a command that met a full disk, and after going on with room again."""
    stopped = zygote.run(command.starting(out), out, **fault)
    problem = command.problem(out, stopped)
    if stopped.code != 1 or FULL not in stopped.said:
        problem = f"ended with {stopped.code}: {stopped.said.strip()[-300:]}"
    state = state_of(out)
    if state not in ends:
        ends[state] = command.finished_otherwise(out, zygote.run(command.going_on(out), out))
    return problem or ends[state]


def fill_up_at(zygote: Zygote, command: Command, calls: list[Call], folder: Path, record: Record) -> dict[str, str]:
    problems, ends = {}, dict[str, str | None]()
    for call in calls:
        out = folder / str(call.number)
        if problem := problem_of(zygote, command, out, ends, at=call.number, action=DISK_FULL):
            problems[str(call)] = problem
        shutil.rmtree(out, ignore_errors=True)
    record("disk full from each call on", command.name, len(calls), len(calls) - len(problems))
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_full_from_each_call_on_it_says_so_and_goes_on(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    calls = [call for call in command.last_checkpoint_and_after() if call.name in NEED_SPACE]
    assert fill_up_at(zygote, command, calls, tmp_path, record) == {}


@pytest.mark.parametrize("name", ["pretrain train", "finetune instruct", "rlhf ppo"])
def test_full_while_it_writes_a_checkpoint_it_says_so_and_goes_on(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    large = [call for call in command.last_checkpoint_and_after() if call.num_bytes > 1000]
    assert fill_up_at(zygote, command, random.Random(name).sample(large, 1), tmp_path, record) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_limit_of_file_sizes_is_a_full_disk(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    largest = max(file.stat().st_size for file in command.whole.rglob("*") if file.is_file())
    problem = problem_of(zygote, command, tmp_path / "run", {}, file_bytes=largest // 2)
    record("largest file limited (RLIMIT_FSIZE)", name, 1, int(not problem))
    assert problem is None


# --- file systems ---


def mount(zygote: Zygote, place: Path, *options: str) -> None:
    """Mount something for the commands; skip where that is not allowed."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    if error := zygote.mount(place, *options):
        pytest.skip(f"mounting is not allowed: {error.strip()}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "tokenizer train"])
def test_on_a_small_disk_it_says_so_and_goes_on(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    needed = sum(file.stat().st_size for file in command.whole.rglob("*") if file.is_file())
    mount(zygote, tmp_path, "-t", "tmpfs", "-o", f"size={max(needed // 2, 20_000)}", "none")
    out, seen = tmp_path / "run", zygote.seen(tmp_path / "run")
    stopped = zygote.run(command.starting(out), out)
    # Most commands look how much is free before they start.
    is_said = FULL in stopped.said or "GB free, but" in stopped.said
    problem = None if stopped.code == 1 and is_said else f"{stopped.code}: {stopped.said[-300:]}"
    problem = problem or command.problem(seen, stopped)
    mount(zygote, tmp_path, "-o", "remount,size=100m")
    again = [*name.split(), "--resume", str(out)] if rundir.is_run(seen) else command.starting(out)
    problem = problem or command.finished_otherwise(seen, zygote.run(again, out))
    record("small disk (tmpfs)", name, 1, int(not problem))
    assert problem is None


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ARGUMENTS if name != "rlhf dpo"), "rlhf dpo"]
)
def test_a_folder_that_can_not_be_written_is_said_and_stays(
    zygote: Zygote, command_of: Callable[[str], Command], record: Record, name: str, tmp_path: Path
) -> None:
    command = command_of(name)
    place = shutil.copytree(command.whole.parent, tmp_path / "place")
    mount(zygote, place, "--bind", str(place))
    mount(zygote, place, "-o", "remount,bind,ro")  # root may write to any folder otherwise
    refused = zygote.run(command.starting(place / "new"), place)
    again = zygote.run([*name.split(), "--resume", str(place / "run")], place)
    said = [outcome.code == 1 and "not writable (" in outcome.said for outcome in (refused, again)]
    record("read-only folder", name, 2, sum(said))
    assert said == [True, True], refused.said + again.said
    assert not [outcome.said for outcome in (refused, again) if "Traceback" in outcome.said]
    assert rundir.state(zygote.seen(place / "run")) == "finished"
