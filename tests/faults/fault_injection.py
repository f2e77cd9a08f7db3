"""Commands that are run with a fault, and what must hold afterwards."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fledge import checkpoints, rundir
from fledge.lineage import sha256_file
from fledge.metrics_log import read_metrics, whole_lines

DISK_FULL = -1  # see shim.c
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Call:
    """A call that changes something in a run folder."""

    number: int
    name: str
    path: str  # within the run folder
    num_bytes: int


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int  # negative: the signal that killed it
    said: str
    calls: list[Call]
    cpu_s: float


class Zygote:
    """Starts commands; see zygote.py."""

    def __init__(self, shim: Path, workplace: Path) -> None:
        environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "PYTHONPATH": str(HERE.parents[1]),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }
        self._workplace, self._count = workplace, 0
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=HERE.parents[1],
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def start(self, arguments: list[str], folder: Path, **fault: Any) -> "Child":
        """Begin a command; `folder` is what it works on."""
        self._count += 1
        log, said = (self._workplace / f"{self._count}.{kind}" for kind in ("log", "said"))
        request = {"arguments": arguments, "folder": str(folder), "log": str(log), "said": str(said), "fault": fault}
        return Child(self._ask({"start": request})["pid"], folder, log, said)

    def mount(self, place: Path, *options: str) -> str:
        """Mount something where only the commands see it; what went wrong, or an empty text."""
        return str(self._ask({"mount": [*options, str(place)]})["error"])

    def seen(self, path: Path) -> Path:
        """A path as the commands see it."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def wait(self, child: "Child") -> Outcome:
        """How it ended."""
        answer = self._ask({"wait": child.pid})
        calls = child.calls()
        said = child.said.read_text(errors="replace") if child.said.exists() else ""
        child.log.unlink(missing_ok=True)
        child.said.unlink(missing_ok=True)
        return Outcome(answer["status"], said, calls, answer["cpu_s"])

    def run(self, arguments: list[str], folder: Path, **fault: Any) -> Outcome:
        """A command from beginning to end."""
        return self.wait(self.start(arguments, folder, **fault))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Child:
    """A command at work."""

    pid: int
    folder: Path
    log: Path
    said: Path

    def calls(self) -> list[Call]:
        """What it has changed so far."""
        if not self.log.exists():
            return []
        fields = [line.split("\t") for line in whole_lines(self.log)]
        base = len(str(self.folder)) + 1
        return [Call(int(n), name, path[base:], int(size)) for n, name, path, size in fields]


@dataclass
class Command:
    """A command with its arguments, and the run that nothing disturbed."""

    name: str  # such as `pretrain train`
    arguments: list[str]
    product: str  # the file by which two runs are compared
    calls: list[Call] = field(default_factory=list)
    whole: Path = Path()
    wall_s: float = 0.0

    def starting(self, out: Path) -> list[str]:
        """The command line that begins a run."""
        return [*self.name.split(), *self.arguments, "--out", str(out)]

    def going_on(self, out: Path) -> list[str]:
        """The command line by which a user goes on with what is there."""
        if not rundir.is_run(out):
            return self.starting(out)
        return [*self.name.split(), "--resume", str(out)]

    def last_checkpoint_and_after(self) -> list[Call]:
        """The calls from the last checkpoint's first one to the run's end: publication, summary, result."""
        begun = [call for call in self.calls if re.fullmatch(r"checkpoints/\.step-\d+\.partial", call.path)]
        return self.calls[begun[-1].number - 1 :] if begun else self.calls

    def problem(self, out: Path, stopped: Outcome) -> str | None:
        """What is wrong with a folder that a fault has left; None if nothing is lost or half-written."""
        try:
            return self._problem(out, stopped)
        except Exception as error:  # unreadable
            return f"{type(error).__name__}: {error}"

    def _problem(self, out: Path, stopped: Outcome) -> str | None:
        if "Traceback" in stopped.said:
            return "a traceback: " + stopped.said.strip().splitlines()[-1]
        if not rundir.is_run(out):
            return None if len(stopped.calls) < 40 else "no run folder any more"
        if rundir.state(out) == "running":
            return "still locked"
        read_metrics(out)
        [json.loads(line) for line in whole_lines(out / "samples.jsonl")]
        listed = checkpoints.listed(out / "checkpoints")
        clears_away = self.name == "pretrain prepare" and (out / "shards").is_dir()
        for checkpoint in listed:
            damage = checkpoints.damage(checkpoint)
            if damage and not clears_away:
                return f"{checkpoint.name} has its name and is not whole: {damage}"
        renamed = [
            int(found[1])
            for call in stopped.calls[:-1]
            if call.name == "rename" and (found := re.fullmatch(r"checkpoints/\.step-(\d+)\.partial", call.path))
        ]
        newest = max((checkpoints.step_of(c) for c in listed), default=0)
        if renamed and newest < max(renamed) and not clears_away:
            return f"checkpoint {max(renamed)} is lost"
        folder = Path(self.product).parts[0]
        if (out / folder).exists():
            return differences(self.whole / folder, out / folder)
        return None

    def finished_otherwise(self, out: Path, again: Outcome) -> str | None:
        """What differs between a run that was gone on with and the undisturbed one; None if nothing does."""
        if again.code != 0:
            return f"can't be gone on with ({again.code}): {again.said.strip()[-300:]}"
        if rundir.read_result(out) is None:
            return "has no result"
        if unfinished := [p.name for p in out.rglob(".*") if p.name not in (".lock", ".spent.json")]:
            return f"left behind: {unfinished}"
        if timeless(read_metrics(out)) != timeless(read_metrics(self.whole)):
            return "other metrics"
        folder = Path(self.product).parts[0]
        return differences(self.whole / folder, out / folder)


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what the clock has a part in."""
    clocked = ("_s", "mfu", "mfu_nominal", "generating_share")
    return [{k: v for k, v in line.items() if not k.endswith(clocked)} for line in metrics]


def differences(expected: Path, found: Path) -> str | None:
    """The first file of a published folder that is not as expected; model cards name their run."""
    names = [{p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in (expected, found)]
    if names[0] != names[1]:
        return f"{found.name}/ has other files: {sorted(names[0] ^ names[1])}"
    for name in sorted(names[0] - {"README.md"}):
        if sha256_file(expected / name) != sha256_file(found / name):
            return f"{found.name}/{name} differs"
    return None


def state_of(out: Path) -> str:
    """All that going on depends on: two folders of one state end alike.

    Unfinished parts are cleared away unread, and numbers of the clock decide nothing.
    """
    parts = []
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if any(part.startswith(".") and part.endswith(".partial") for part in Path(name).parent.parts):
            continue
        content = ""
        if path.suffix in (".safetensors", ".bin") and path.is_file():
            content = sha256_file(path)
        elif path.suffix == ".jsonl":
            content = str(len(whole_lines(path)))
        parts.append(f"{name} {content}")
    return "\n".join(parts)
