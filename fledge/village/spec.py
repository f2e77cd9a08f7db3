"""Names of village data, `village:WORLD/KIND`, wherever a command takes data."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fledge.atomic import write_file
from fledge.errors import DataError
from fledge.village.world import SIZES, World, make_world

KINDS = ("stories", "instructions", "messages", "preferences", "minimal-pairs", "canaries")
PARTS = ("train", "test")
DIALS = {  # with the largest value of each
    "instructions": {"manners": 1.0},
    "messages": {"comparisons": 1.0},
    "preferences": {"temperature": 1e9, "length_bias": 1e9, "label_noise": 0.5, "evasion": 1.0},
}

_SPEC = re.compile(
    r"village:(?P<head>[a-z-]*[a-z])(-(?P<seed>\d+))?(/(?P<kind>[a-z-]+))?(:(?P<part>[a-z]+))?"
    r"(\?(?P<dials>[a-z_]+=\d*\.?\d+(&[a-z_]+=\d*\.?\d+)*))?(#(?P<count>\d+))?"
)
_FORM = "village:WORLD[-SEED][/KIND][:PART][?DIAL=VALUE][#COUNT]"


@dataclass(frozen=True)
class Spec:
    """Which rows of which world."""

    world: str = "hamlet"
    seed: int = 0
    kind: str = "stories"
    part: str = "train"
    dials: tuple[tuple[str, float], ...] = ()
    count: int | None = None  # None: the default of the world and kind

    def make_world(self) -> World:
        """The world that the spec names."""
        return make_world(self.world, self.seed)


def is_spec(text: str) -> bool:
    """True for a name of village data (right or wrong), so that other readers leave it alone."""
    return text.startswith("village:")


def parse_spec(text: str) -> Spec:
    """Read `village:WORLD[-SEED][/KIND][:PART][?DIAL=VALUE][#COUNT]`; `village:KIND` means the hamlet's.

    Raises:
        DataError: a part of the name is unknown; the message lists what there is.
    """
    found = _SPEC.fullmatch(text)
    if not found:
        raise DataError(f"'{text}': village data is named {_FORM}")
    world, kind, part = found["head"], found["kind"] or "stories", found["part"] or "train"
    if world in KINDS and not found["kind"]:
        world, kind = "hamlet", world
    dials = [dial.split("=") for dial in found["dials"].split("&")] if found["dials"] else []
    checks = [("world", world, tuple(SIZES)), ("kind", kind, KINDS), ("part", part, PARTS)]
    for what, value, known in checks + [("dial", name, DIALS.get(kind, ())) for name, _ in dials]:
        if value not in known:
            raise DataError(f"'{text}': no {what} '{value}'; there is {', '.join(known) or 'none'}")
    for name, value in dials:
        if float(value) > DIALS[kind][name]:
            raise DataError(f"'{text}': {name} is {value}, must be from 0 to {DIALS[kind][name]:g}")
    seed, count = int(found["seed"] or 0), int(found["count"]) if found["count"] else None
    return Spec(world, seed, kind, part, tuple((name, float(value)) for name, value in dials), count)


def rows(spec: Spec | str) -> Iterator[dict[str, Any]]:
    """Yield the data rows that a spec names, in the format of their kind; the kind's module documents it."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    kind = import_module(f"fledge.village.{spec.kind.replace('-', '_')}")
    yield from kind.rows(spec.make_world(), spec.part, spec.count, **dict(spec.dials))


def write(spec: Spec | str, path: Path) -> int:
    """Write the rows as JSON lines for people and other programs to read; the number of rows.

    Raises:
        DataError: the file exists.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; name another file")
    text = "".join(json.dumps(row) + "\n" for row in rows(spec))
    write_file(path, text)
    return text.count("\n")
