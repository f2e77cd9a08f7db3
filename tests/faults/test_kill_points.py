"""SIGKILL after every call that changes a file: what was there stays, nothing half-written has a name, all goes on."""

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
from fault_injection import Call, Command, Zygote, state_of

from fledge import atomic, checkpoints

KILL = signal.SIGKILL
TRAINING = [name for name in ARGUMENTS if name not in ("tokenizer train", "pretrain prepare")]


def points(calls: list[Call]) -> list[dict[str, Any]]:
    """Before each call, which is after the one before it; and in the middle of each that writes."""
    return [
        {"at": call.number, "action": KILL, "is_torn": is_torn}
        for call in calls
        for is_torn in ([False, True] if call.num_bytes > 1 else [False])
    ]


# --- the functions that make files and folders appear ---

WRITES_A_CHECKPOINT = """
from pathlib import Path
from fledge import checkpoints
folder = Path({folder!r})
with checkpoints.write(folder, 3) as partial:
    (partial / "state.pt").write_bytes(bytes(1000))
    (partial / "part").mkdir()
    (partial / "part" / "weights").write_bytes(bytes(2000))
checkpoints.prune(folder, 2)
"""
REPLACES_A_FOLDER = """
from pathlib import Path
from fledge import atomic
with atomic.new_folder(Path({folder!r}) / "model") as partial:
    for name in ("config.json", "model.safetensors"):
        (partial / name).write_text("new " + name)
"""
REPLACES_A_FILE = """
from pathlib import Path
from fledge import atomic
atomic.write_file(Path({folder!r}) / "result.json", "new result")
"""


def every_kill(zygote: Zygote, record: Record, code: str, folder: Path, make: Callable[[Path], None]) -> list[Path]:
    """What is left of folders that `make` has filled after a kill at each call of a piece of code."""
    make(folder / "counted")
    counted = zygote.run(["-c", code.format(folder=str(folder / "counted"))], folder / "counted")
    assert counted.code == 0, counted.said
    left = []
    for number, point in enumerate(points(counted.calls)):
        left.append(folder / f"killed-{number}")
        make(left[-1])
        outcome = zygote.run(["-c", code.format(folder=str(left[-1]))], left[-1], **point)
        assert outcome.code == -KILL
    return left


def test_a_checkpoint_is_whole_or_not_there_after_each_call(zygote: Zygote, record: Record, tmp_path: Path) -> None:
    def two_checkpoints(folder: Path) -> None:
        folder.mkdir()
        for step in (1, 2):
            with checkpoints.write(folder, step) as partial:
                (partial / "state.pt").write_bytes(bytes(1000))

    left = every_kill(zygote, record, WRITES_A_CHECKPOINT, tmp_path, two_checkpoints)
    assert len(left) > 20
    newest = []
    for folder in left:
        listed = checkpoints.listed(folder)
        assert [checkpoints.damage(checkpoint) for checkpoint in listed] == [None] * len(listed)
        assert len(listed) >= 2
        newest.append(checkpoints.step_of(listed[-1]))
        atomic.finish_replacements(folder)
        assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    assert set(newest) == {2, 3}
    assert newest == sorted(newest)
    record("SIGKILL after each call", "writing a checkpoint", len(left), len(left))


def test_a_published_folder_is_the_old_one_or_the_new_after_each_call(
    zygote: Zygote, record: Record, tmp_path: Path
) -> None:
    def old_model(folder: Path) -> None:
        with atomic.new_folder(folder / "model") as partial:
            for name in ("config.json", "model.safetensors"):
                (partial / name).write_text(f"old {name}")

    left = every_kill(zygote, record, REPLACES_A_FOLDER, tmp_path, old_model)
    found = set()
    for folder in left:
        atomic.finish_replacements(folder)
        assert [p.name for p in folder.iterdir()] == ["model"]
        found.add(tuple(sorted(p.read_text() for p in (folder / "model").iterdir())))
    assert found == {(f"{which} config.json", f"{which} model.safetensors") for which in ("old", "new")}
    record("SIGKILL after each call", "replacing a folder", len(left), len(left))


def test_a_replaced_file_is_the_old_one_or_the_new_after_each_call(
    zygote: Zygote, record: Record, tmp_path: Path
) -> None:
    def old_result(folder: Path) -> None:
        folder.mkdir()
        (folder / "result.json").write_text("old result")

    left = every_kill(zygote, record, REPLACES_A_FILE, tmp_path, old_result)
    assert {(folder / "result.json").read_text() for folder in left} == {"old result", "new result"}
    record("SIGKILL after each call", "replacing a file", len(left), len(left))


# --- whole commands ---


def test_all_that_is_written_passes_through_the_counted_calls(command_of: Callable[[str], Command]) -> None:
    command = command_of("finetune instruct")
    seen: dict[str, int] = {}
    for call in command.calls:
        seen[call.path] = seen.get(call.path, 0) + call.num_bytes
    # safetensors writes under a name of its own.
    unnamed = [size for path, size in seen.items() if "/.tmp" in path]
    for folder, partial in (
        ("model", ".model.partial"),
        ("checkpoints/step-000004", "checkpoints/.step-000004.partial"),
    ):
        for file in (command.whole / folder).iterdir():
            size = file.stat().st_size
            assert size == seen.get(f"{partial}/{file.name}") or size in unnamed, file.name


def survivors(
    zygote: Zygote, command: Command, chosen: list[dict[str, Any]], folder: Path, record: Record, kind: str
) -> None:
    """Kill a command at points of its run; each time look at what is left, and go on where it is a new state."""
    problems, ends = {}, dict[str, str | None]()
    for point in chosen:
        out = folder / f"{point['at']}-{int(point['is_torn'])}"
        stopped = zygote.run(command.starting(out), out, **point)
        problem = command.problem(out, stopped) if stopped.code == -KILL else f"ended with {stopped.code}"
        state = state_of(out)
        if state not in ends:
            ends[state] = command.finished_otherwise(out, zygote.run(command.going_on(out), out))
        if problem := problem or ends[state]:
            problems[str(point)] = problem
        shutil.rmtree(out, ignore_errors=True)
    record(kind, command.name, len(chosen), len(chosen) - len(problems))
    assert not problems


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_killed_after_each_call_of_checkpoint_and_publication_it_ends_the_same(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    window = points(command.last_checkpoint_and_after())
    survivors(zygote, command, window, tmp_path, record, "SIGKILL after each call")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain prepare", "pretrain train"])
def test_killed_after_each_call_up_to_the_first_checkpoint_it_ends_the_same(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    first = next(c.number for c in command.calls if c.path == "checkpoints/.step-000001.partial" and c.name == "rename")
    survivors(zygote, command, points(command.calls[:first]), tmp_path, record, "SIGKILL after each call")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_killed_while_it_writes_it_ends_the_same(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    some = random.Random(name).sample(points(command.last_checkpoint_and_after()), 2)
    survivors(zygote, command, some, tmp_path, record, "SIGKILL after each call")


@pytest.mark.slow
def test_killed_while_it_begins_a_run_of_several_seeds_can_be_begun_or_gone_on_with(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record
) -> None:
    command, seeds, problems = command_of("pretrain train"), ["--seeds=1,2", "--run.max-steps=1"], {}
    for at in range(1, 20):  # up to the first files of the first seed's run
        out = tmp_path / str(at)
        start = [*command.starting(out), *seeds]
        assert zygote.run(start, out, at=at, action=KILL).code == -KILL
        resume = [*command.name.split(), "--resume", str(out)]
        again = zygote.run(resume if (out / "config.yaml").is_file() else start, out)
        if again.code or not (out / "result.json").is_file():
            problems[at] = again.said
    record("SIGKILL after each call", "pretrain train --seeds", 19, 19 - len(problems))
    assert problems == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain train", "finetune instruct"])
def test_killed_after_each_call_while_it_replaces_its_model_it_ends_the_same(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    more = [*name.split(), "--run.max-steps=5", "--resume"]
    whole = shutil.copytree(command.whole, tmp_path / "whole")
    counted = zygote.run([*more, str(whole)], whole)
    assert counted.code == 0, counted.said
    begun = next(call.number for call in counted.calls if call.path == ".model.partial")
    longer = Command(name, command.arguments, command.product, counted.calls, whole)
    problems, ends = {}, dict[str, str | None]()
    chosen = points(counted.calls[begun - 1 :])
    for point in chosen:
        out = shutil.copytree(command.whole, tmp_path / "killed")
        assert zygote.run([*more, str(out)], out, **point).code == -KILL
        models = [out / n for n in ("model", ".model.old") if (out / n).is_dir()]
        old_or_new = [(base.whole / command.product).read_bytes() for base in (command, longer)]
        if not any((model / "model.safetensors").read_bytes() in old_or_new for model in models):
            problems[str(point)] = "neither the old model nor the new"
        state = state_of(out)
        if state not in ends:
            ends[state] = longer.finished_otherwise(out, zygote.run([*more, str(out)], out))
        if ends[state]:
            problems[str(point)] = ends[state]
        shutil.rmtree(out)
    record("SIGKILL after each call", name, len(chosen), len(chosen) - len(problems))
    assert not problems


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_killed_at_20_random_moments_and_again_while_going_on_it_ends_the_same(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command, chance, problems = command_of(name), random.Random(name), {}
    for number in range(20):
        out = tmp_path / str(number)
        for _ in range(2):
            child = zygote.start(command.going_on(out), out)
            time.sleep(chance.uniform(0, command.wall_s))  # the moment is what is tested
            os.kill(child.pid, KILL)
            stopped = zygote.wait(child)
            if problem := command.problem(out, stopped):
                problems[number] = problem
        if problem := command.finished_otherwise(out, zygote.run(command.going_on(out), out)):
            problems[number] = problem
    record("SIGKILL at a random moment", name, 40, 40 - len(problems))
    assert not problems
