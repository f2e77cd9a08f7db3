"""Names of village data, `village:WORLD/KIND`, wherever a command takes data."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fledge.errors import DataError
from fledge.village.world import SIZES, World, make_world

KINDS = ("stories", "instructions", "messages", "preferences", "minimal-pairs", "canaries")
PARTS = ("train", "test")

_SPEC = re.compile(
    r"village:(?P<world>[a-z]+)(-(?P<seed>\d+))?(/(?P<kind>[a-z-]+))?(:(?P<part>[a-z]+))?(#(?P<count>\d+))?"
)


@dataclass(frozen=True)
class Spec:
    """Which rows of which world."""

    world: str = "hamlet"
    seed: int = 0
    kind: str = "stories"
    part: str = "train"
    count: int | None = None  # None: the default of the world and kind

    def __str__(self) -> str:
        seed = f"-{self.seed}" if self.seed else ""
        part = f":{self.part}" if self.part != "train" else ""
        return f"village:{self.world}{seed}/{self.kind}{part}" + (
            f"#{self.count}" if self.count is not None else ""
        )

    def make_world(self) -> World:
        """The world that the spec names."""
        return make_world(self.world, self.seed)


def is_spec(text: str) -> bool:
    """True for a name of village data (right or wrong), so that other readers leave it alone."""
    return text.startswith("village:")


def parse_spec(text: str) -> Spec:
    """Read `village:WORLD[-SEED][/KIND][:PART][#COUNT]`; `village:KIND` is short for the hamlet's.

    Raises:
        DataError: a part of the name is unknown; the message lists what there is.
    """
    found = _SPEC.fullmatch(text)
    if not found:
        raise DataError(f"'{text}': village data is named village:WORLD[-SEED][/KIND][:PART][#COUNT]")
    world, kind = found["world"], found["kind"]
    if not kind and (world in KINDS or text.split(":")[1].split("#")[0] in KINDS):
        world, kind = "hamlet", text.split(":")[1].split("#")[0]
    for value, known, what in (
        (world, SIZES, "world"),
        (kind or "stories", KINDS, "kind"),
        (found["part"] or "train", PARTS, "part"),
    ):
        if value not in known:
            raise DataError(f"'{text}': no {what} '{value}'; there are {', '.join(known)}")
    count = int(found["count"]) if found["count"] else None
    return Spec(world, int(found["seed"] or 0), kind or "stories", found["part"] or "train", count)


def rows(spec: Spec | str) -> Iterator[dict[str, Any]]:
    """Yield the data rows that a spec names, in the format of their kind; the kind's module documents it."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    kind = import_module(f"fledge.village.{spec.kind.replace('-', '_')}")
    yield from kind.rows(spec.make_world(), spec.part, spec.count)


def write(spec: Spec | str, path: Path) -> int:
    """Write the rows as JSON lines for people and other programs to read; the number of rows.

    Raises:
        DataError: the file exists.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; name another file")
    unfinished = path.with_name(f".{path.name}")
    num_rows = 0
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows(spec):
            file.write(json.dumps(row) + "\n")
            num_rows += 1
    unfinished.rename(path)
    return num_rows
