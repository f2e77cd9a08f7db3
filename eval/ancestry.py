"""The runs of a life: those that are named, and all their parents that are still on this disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fledge import console, lineage, rundir
from fledge.errors import RunError

PRODUCTS = ("model", "shards", "tokenizer")  # what a run leaves to the next one


@dataclass(frozen=True)
class Link:
    """One parent of a run, as its lineage.json has it."""

    kind: str
    path: Path  # of the run that made it; of the folder itself, where no run did
    is_run: bool
    sha256: str  # when it was used
    state: Literal["same", "changed", "missing"]  # what lies there now, compared by hash


@dataclass(frozen=True)
class Stage:
    """One run of a life."""

    path: Path
    record: dict[str, Any]  # lineage.json
    links: list[Link]
    sources: list[str]  # data that came in here, and not through a parent
    product: str | None  # hash of the model, shards or tokenizer that it made
    depth: int  # of parents above it


def expand(paths: Sequence[str]) -> list[Path]:
    """The run folders that are meant: a run, the part in it, or a folder of runs (of a demo, of several seeds).

    Raises:
        RunError: nothing there, or no run.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path}: no such folder; give the run folders that the commands wrote (--out)")
        if rundir.is_run(path):
            runs = [path]
        elif path.name in PRODUCTS and rundir.is_run(path.parent):
            runs = [path.parent]
        else:
            runs = sorted(child for child in path.iterdir() if rundir.is_run(child))
        if not runs:
            raise RunError(f"{path}: no run folder, and no runs in it (config.yaml and lineage.json)")
        found |= dict.fromkeys(runs)
    return list(found)


def life(runs: Sequence[Path]) -> list[Stage]:
    """These runs and all that they come from, parents before children.

    Raises:
        RunError: a lineage.json can't be read.
    """
    stages: dict[Path, Stage] = {}
    hashes: dict[tuple[Path, str], str] = {}

    def sha256(folder: Path, kind: str) -> str:
        key = (folder.resolve(), kind)
        if key not in hashes:
            hashes[key] = lineage.sha256_folder(folder, kind)
        return hashes[key]

    def visit(path: Path, below: tuple[Path, ...] = ()) -> None:
        if path.resolve() in below:
            raise RunError(f"{path}/lineage.json: names the run as its own ancestor; put it back as the run wrote it")
        if path.resolve() in stages:
            return
        record = lineage.read(path)
        judges = [reward["model"] for reward in record.get("rewards", []) if "model" in reward]
        links = [_link(path, parent, sha256) for parent in [*record.get("parents", []), *judges]]
        inherited: set[str] = set()
        depth = 0
        for link in links:
            if link.is_run and link.state != "missing":
                visit(link.path, (*below, path.resolve()))
                above = stages[link.path.resolve()]
                depth = max(depth, above.depth + 1)
                if link.kind == "shards":  # they are that data
                    inherited |= set(_sources(above.record))
        made = [path / name for name in PRODUCTS if (path / name).is_dir()]
        sources = [source for source in _sources(record) if source not in inherited]
        product = sha256(made[0], made[0].name) if made else None
        stages[path.resolve()] = Stage(path, record, links, sources, product, depth)
        bar.advance()

    with console.progress("reading runs and checking hashes", unit="runs") as bar:
        for run in runs:
            visit(run)
    return sorted(stages.values(), key=lambda stage: stage.depth)


def _link(run: Path, record: dict[str, Any], sha256: Callable[[Path, str], str]) -> Link:
    part, is_run = lineage.located(run, record), "run" in record
    state: Literal["same", "changed", "missing"] = "missing"
    if lineage.is_part(part):
        state = "same" if sha256(part, record["kind"]) == record["sha256"] else "changed"
    owner = part.parent if is_run else part
    return Link(record["kind"], owner, is_run and (state == "missing" or rundir.is_run(owner)), record["sha256"], state)


def _sources(record: dict[str, Any]) -> list[str]:
    """The names of the data in a lineage.json, which lists them plainly or below `sources`."""
    data = record.get("data", [])
    entries = data.get("sources", []) if isinstance(data, dict) else data
    names = [str(entry.get("source", entry)) if isinstance(entry, dict) else str(entry) for entry in entries]
    return list(dict.fromkeys(names))
