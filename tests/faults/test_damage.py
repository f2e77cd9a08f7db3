"""A checkpoint that is no longer what was written, and data that changed under a run."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ARGUMENTS, Record
from fault_injection import Command, Zygote

from fledge import checkpoints

KEEP_CHECKPOINTS = [name for name in ARGUMENTS if name != "tokenizer train"]


def flip(file: Path) -> None:
    """Turn over a bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    """Cut off the second half."""
    os.truncate(file, file.stat().st_size // 2)


def replace_foxes(file: Path) -> None:
    """Change a text."""
    file.write_bytes(file.read_bytes().replace(b"fox", b"cat"))


def put_a_space(file: Path) -> None:
    """Change nothing but the bytes."""
    file.write_bytes(file.read_bytes() + b" ")


def before_publication(zygote: Zygote, command: Command, out: Path) -> Path:
    """A run that was killed after its last checkpoint."""
    after = command.last_checkpoint_and_after()
    end = max(call.number for call in after if call.path.startswith("checkpoints/.") and "partial" in call.path)
    stopped = zygote.run(command.starting(out), out, at=end + 1, action=signal.SIGKILL)
    assert stopped.code == -signal.SIGKILL
    return out


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in KEEP_CHECKPOINTS if n != "rlhf ppo"), "rlhf ppo"]
)
def test_whatever_is_damaged_in_a_checkpoint_the_one_before_is_used_aloud(
    zygote: Zygote, command_of: Callable[[str], Command], tmp_path: Path, record: Record, name: str
) -> None:
    command = command_of(name)
    whole = before_publication(zygote, command, tmp_path / "whole")
    newest = checkpoints.listed(whole / "checkpoints")[-1].relative_to(whole)
    files = sorted(path.relative_to(whole) for path in (whole / newest).rglob("*") if path.is_file())
    cases = [*((file, flip) for file in files), (files[-1], halve), (files[0], Path.unlink)]
    problems = {}
    for file, harm in cases:
        out = shutil.copytree(whole, tmp_path / "run")
        harm(out / file)
        again = zygote.run(command.going_on(out), out)
        problem = command.finished_otherwise(out, again)
        if f"{out / newest}: damaged (" not in again.said:
            problem = "not said"
        if problem:
            problems[f"{harm.__name__} {file}"] = problem
        shutil.rmtree(out)
    record("damaged checkpoint", name, len(cases), len(cases) - len(problems))
    assert problems == {}


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("pretrain train", "shards/shards/train-00000.bin", "its parents changed"),
        ("pretrain prepare", "stories.jsonl", "its data changed"),
        ("pretrain prepare", "tokenizer/tokenizer/tokenizer.json", "its parents changed"),
        pytest.param("rlhf ppo", "reward.py", "its rewards changed", marks=pytest.mark.slow),
        *(
            pytest.param(name, "base/model/model.safetensors", "its parents changed", marks=pytest.mark.slow)
            for name in KEEP_CHECKPOINTS
            if not name.startswith("pretrain")
        ),
    ],
)
def test_what_changed_under_a_run_is_not_gone_on_with(
    zygote: Zygote,
    command_of: Callable[[str], Command],
    inputs: dict[str, str],
    tmp_path: Path,
    record: Record,
    name: str,
    changed: str,
    said: str,
) -> None:
    command = command_of(name)
    out = before_publication(zygote, command, tmp_path / "run")
    file = Path(inputs["shards"]).parent / changed
    before = file.read_bytes()
    # Still readable, and as long as before where there is no other reason to look.
    changes = {".bin": flip, ".safetensors": flip, ".jsonl": replace_foxes, ".json": put_a_space, ".py": put_a_space}
    changes[file.suffix](file)
    try:
        again = zygote.run(command.going_on(out), out)
    finally:
        file.write_bytes(before)
    assert again.code == 1, again.said
    assert f"{out}: {said} since the run began; put it back, or start a new run" in again.said
    assert command.finished_otherwise(out, zygote.run(command.going_on(out), out)) is None
    record("changed input", name, 1, 1)
