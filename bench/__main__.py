"""Run the benchmarks and write one Markdown table and one JSON file to runs/bench/."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bench.measure import Row
from fledge import console, lineage

# Minutes together; the others need data that is named to them, or take an hour.
QUICK = ("startup", "generation", "training", "prepare", "deepspeed")
OUT = Path("runs") / "bench"


def main(names: list[str]) -> None:
    """Run the named benchmarks, or the quick ones."""
    rows: list[Row] = []
    for name in names or QUICK:
        console.note(f"[{name}]")
        rows += importlib.import_module(f"bench.{name}").run()
    header = ["benchmark", "fledge", "peer", "ratio", "goal", "unit", "CPU-s", "peer CPU-s", "CPU ratio"]
    cells = [[r.name, f"{r.ours:.4g}", _text(r.peer), _text(r.ratio), r.goal, r.unit, *_cpu(r)] for r in rows]
    table = console.table(cells, header)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "bench.md").write_text(table + "\n", encoding="utf-8")
    content = {"versions": lineage.versions(), "rows": [asdict(row) for row in rows]}
    (OUT / "bench.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    console.result(table)


def _cpu(row: Row) -> list[str]:
    if row.cpu_s is None:
        return ["", "", ""]
    ours, peer = row.cpu_s
    return [_text(ours), _text(peer), _text(peer / ours)]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    main(sys.argv[1:])
