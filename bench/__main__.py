"""Run the benchmarks and write one Markdown table and one JSON file to runs/bench/."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bench.measure import Row
from fledge import console, lineage

QUICK = (
    "startup",
    "generation",
    "training",
    "prepare",
)  # minutes; `village_ranking` takes an hour and is asked for
OUT = Path("runs") / "bench"


def main(names: list[str]) -> None:
    """Run the named benchmarks, or the quick ones."""
    rows: list[Row] = []
    for name in names or QUICK:
        console.note(f"[{name}]")
        rows += importlib.import_module(f"bench.{name}").run()
    header = ["benchmark", "fledge", "peer", "ratio", "goal", "unit"]
    cells = [[r.name, f"{r.ours:.4g}", _text(r.peer), _text(r.ratio), r.goal, r.unit] for r in rows]
    table = console.table(cells, header)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "bench.md").write_text(table + "\n", encoding="utf-8")
    content = {"versions": lineage.versions(), "rows": [asdict(row) for row in rows]}
    (OUT / "bench.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    console.result(table)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    main(sys.argv[1:])
