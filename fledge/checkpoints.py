"""Checkpoints of a run: whole or not there, proved by a manifest of sizes and checksums."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fledge import atomic, processes
from fledge.console import warn
from fledge.lineage import sha256_file

MANIFEST = "manifest.json"


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint, `step-000400`."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("step-"))


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; unfinished ones (dot names) don't count."""
    found = (p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdecimal())
    return sorted(found, key=step_of)


@contextlib.contextmanager
def write(folder: Path, step: int) -> Iterator[Path]:
    """Yield a folder to fill with a step's checkpoint; it gets its manifest and its name on success."""
    folder.mkdir(exist_ok=True)
    with atomic.new_folder(folder / name_of(step)) as partial:
        yield partial
        write_manifest(partial)


def write_manifest(checkpoint: Path) -> None:
    """Record size and checksum of every file in a checkpoint folder."""
    files = {
        file.relative_to(checkpoint).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    (checkpoint / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")


def save_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values of this process into a checkpoint that is being made."""
    import torch

    with _state_file(checkpoint, processes.rank()).open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides that the disk is full
                raise error.__context__ from None
            raise


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_state` wrote of this process, on the CPU; the first one's where there were fewer processes."""
    import torch

    file = _state_file(checkpoint, processes.rank())
    if not file.is_file():
        file = _state_file(checkpoint, 0)
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def _state_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / (f"state-{rank}.pt" if rank else "state.pt")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if every file is as its manifest says."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = [(name, entry["bytes"], entry["sha256"]) for name, entry in manifest.items()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} can't be read ({error})"
    for name, size_bytes, digest in expected:
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size_bytes:
            return f"{name} has {file.stat().st_size} bytes, expected {size_bytes}"
        if sha256_file(file) != digest:
            return f"{name} differs from its checksum"
    return None


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are passed over aloud. None if there is none."""
    for checkpoint in reversed(listed(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        warn(f"{checkpoint}: damaged ({problem}); using the one before")
    return None


def prune(folder: Path, keep: int, best_step: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    for checkpoint in listed(folder)[:-keep] if processes.is_first() else []:
        if step_of(checkpoint) != best_step:
            _delete(checkpoint)


def drop_after(folder: Path, step: int) -> None:
    """Delete checkpoints newer than a step (a roll-back, or damaged ones that will be written again)."""
    for checkpoint in listed(folder) if processes.is_first() else []:
        if step_of(checkpoint) > step:
            _delete(checkpoint)


def _delete(checkpoint: Path) -> None:
    doomed = atomic.partial_path(checkpoint)  # a part of it must not be taken for a checkpoint
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
