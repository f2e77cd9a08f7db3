"""`fledge runs`: what is there."""

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from fledge import console, lineage, rundir
from fledge.data.sources import files_below
from fledge.errors import RunError, first_line
from fledge.metrics_log import last_loss


@click.command(help="The runs in a folder: command, state, parent, last loss, size.")
@click.argument("folder", default=str(rundir.RUNS), type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs below a folder, newest last."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; runs are written to runs/ below the current folder")
    found = [file.parent for file in files_below(folder) if file.name == "lineage.json" and rundir.is_run(file.parent)]
    rows = [describe(path) for path in sorted(found, key=lambda p: (p / "config.yaml").stat().st_mtime)]
    if as_json:
        console.result(json.dumps({"command": "runs", "runs": rows}))
        return
    if not rows:
        console.result(f"{folder}: no runs yet")
        return
    header = ["run", "command", "state", "parents", "last loss", "MB"]
    cells = [
        [r["run"], r["command"], r["state"], ", ".join(r["parents"]), _loss(r["last_loss"]), f"{r['bytes'] / 1e6:.1f}"]
        for r in rows
    ]
    console.result(console.table(cells, header))


def describe(path: Path) -> dict[str, Any]:
    """Command, state, parents, last loss (nats/token, None if it has none) and size of a run, be it damaged."""
    found = dict[str, Any](run=str(path), command="", state="damaged", parents=[], last_loss=None, bytes=0)
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a checkpoint that is pruned meanwhile
            found["bytes"] += file.stat().st_size if file.is_file() else 0
    try:
        record = lineage.read(path)
        found["command"] = record["command"]
        found["parents"] = [parent.get("run", parent["path"]) for parent in record.get("parents", [])]
        return found | {"state": rundir.state(path), "last_loss": last_loss(path)}
    except Exception as error:  # files that hold anything
        console.warn(f"{path}: damaged ({first_line(error)})")
        return found


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
