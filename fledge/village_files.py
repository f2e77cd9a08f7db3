"""`fledge village`: any part of the built-in world as plain JSON lines, for people and other programs."""

import itertools
import json
from pathlib import Path

import click

from fledge import console


@click.command(help="Write village data, village:WORLD/KIND, as JSON lines to look at.")
@click.argument("spec", metavar="village:WORLD/KIND", default="village:hamlet/stories")
@click.option("--out", type=click.Path(path_type=Path), help="file to write all rows to  [default: show five]")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
def village(spec: str, out: Path | None, as_json: bool) -> None:
    """Show the first rows of a part of the village, or write all of them to a file."""
    from fledge.village import spec as specs

    parsed = specs.parse_spec(spec)
    if out is None:
        rows = list(itertools.islice(specs.rows(parsed), 5))
        lines = [json.dumps({"command": "village", "rows": rows})] if as_json else map(json.dumps, rows)
        console.result("\n".join(lines))
        return
    count = specs.write(parsed, out)
    result = {"command": "village", "out": str(out), "rows": count}
    console.result(json.dumps(result) if as_json else f"{count} rows of {spec} written to {out}")
