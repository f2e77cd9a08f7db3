"""`fledge runs`: what is there."""

import json
from pathlib import Path
from typing import Any

import click

from fledge import console, lineage, rundir
from fledge.errors import RunError
from fledge.metrics_log import read_metrics


@click.command(help="The runs in a folder: command, state, parent, last loss, size.")
@click.argument("folder", default=str(rundir.RUNS), type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs below a folder, newest last."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; runs are written to runs/ below the current folder")
    found = [p.parent for p in folder.rglob("lineage.json") if rundir.is_run(p.parent)]
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
    """Command, state, parents, last loss (nats/token, None if it has none) and size of one run."""
    record = lineage.read(path)
    losses = [m["loss"] for m in read_metrics(path) if "loss" in m]
    return {
        "run": str(path),
        "command": record["command"],
        "state": rundir.state(path),
        "parents": [parent.get("run", parent["path"]) for parent in record.get("parents", [])],
        "last_loss": losses[-1] if losses else None,
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    }


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
