"""Run folders: created once, locked while in use, never overwritten; parts written beside and renamed."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from fledge import atomic, checkpoints, config, lineage, processes
from fledge.config import CommandConfig
from fledge.errors import Interrupted, RunError
from fledge.metrics_log import MetricsLog, check_trackers, whole_lines

RUNS = Path("runs")
# Ctrl-C, the end of a machine, and Slurm's early warning (`--signal=USR1@180`), which Windows has not.
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class RunFolder:
    """One run on disk: `config.yaml lineage.json metrics.jsonl samples.jsonl checkpoints/ model/ summary.md`.

    Get one from `create` or `reopen`, as a context manager that holds the lock.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.resumes_from: Path | None = None
        self._lock = lock
        self._metrics: MetricsLog | None = None
        self._trackers: list[str] = []
        self._stop = threading.Event()

    # --- what a command writes ---

    def freeze(self, resolved: CommandConfig) -> None:
        """Write config.yaml with every derived value in place."""
        self.write("config.yaml", config.dump(resolved))

    def publish(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """An empty folder to fill that becomes `name` in this run when the block ends without an error."""
        return atomic.new_folder(self.path / name)

    def write(self, name: str, content: str | bytes) -> None:
        """Write or replace one file of this run, whole or not at all."""
        atomic.write_file(self.path / name, content)

    def add_lineage(self, **facts: Any) -> None:
        """Add facts to lineage.json: `parents`, `data`, `tokenizer`, `licences` ..."""
        record = lineage.read(self.path) | facts
        self.write("lineage.json", json.dumps(record, indent=1))

    @contextlib.contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """A folder that all processes fill with what resuming from `step` needs."""
        with checkpoints.write(self.checkpoints, step) as partial:
            processes.wait_for_all()
            yield partial
            processes.wait_for_all()
        processes.wait_for_all()

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl (and to the trackers)."""
        self._log().log(metrics)

    def track_with(self, trackers: Sequence[str]) -> None:
        """Mirror the metrics to these trackers, from the first `log` on."""
        check_trackers(trackers)
        self._trackers = list(trackers)

    def log_sample(self, sample: dict[str, Any]) -> None:
        """Append one object to samples.jsonl: step, prompt, text ..."""
        self._log()
        with (
            atomic.disk_errors(self.path / "samples.jsonl"),
            (self.path / "samples.jsonl").open("a", encoding="utf-8") as file,
        ):
            file.write(_line(sample))

    def samples(self) -> list[dict[str, Any]]:
        """All objects of samples.jsonl."""
        return [json.loads(line) for line in whole_lines(self.path / "samples.jsonl")]

    def _log(self) -> MetricsLog:
        """The open metrics.jsonl; the first call drops from both logs what the run will write again."""
        if self._metrics is None:
            resumed_at = checkpoints.step_of(self.resumes_from) if self.resumes_from else -1
            kept = [sample for sample in self.samples() if sample["step"] <= resumed_at]
            if kept or (self.path / "samples.jsonl").is_file():
                self.write("samples.jsonl", "".join(_line(sample) for sample in kept))
            self._metrics = MetricsLog(self.path, self._trackers, resumed_at)
        return self._metrics

    def rewind(self, checkpoint: Path) -> None:
        """Go on from an earlier checkpoint, as a resumed run does: the next `log` drops what came after it."""
        if self._metrics is not None:
            self._metrics.close()
        self._metrics, self.resumes_from = None, checkpoint

    def write_summary(self, markdown: str) -> None:
        """Write summary.md, which the command line also prints."""
        self.write("summary.md", markdown.rstrip() + "\n")

    # --- being stopped ---

    @property
    def stop_requested(self) -> bool:
        """Whether one of STOPS came to any process; a loop then writes a checkpoint and calls `interrupted`."""
        return processes.total(self._stop.is_set()) != [0]

    def interrupted(self, step: int) -> Interrupted:
        """The error that ends a run that was asked to stop and has written its checkpoint."""
        return Interrupted(f"stopped at step {step}; continue with --resume {self.path}")

    @contextlib.contextmanager
    def stopping_politely(self) -> Iterator[None]:
        """Within this block STOPS ask for a stop; a second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT:  # Slurm sends its others one after the other, while a checkpoint is written
                if self._stop.is_set():
                    raise KeyboardInterrupt
                if processes.is_first():
                    os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")  # prints can't be nested
            self._stop.set()

        before = {number: signal.signal(number, ask) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- opening and closing ---

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
        self._lock.close()


class FollowersFolder(RunFolder):
    """What a process other than the first has of the run folder: it reads, and writes its part of checkpoints."""

    def __init__(self, path: Path, resumes_from: Path | None) -> None:
        super().__init__(path, io.StringIO())
        self.resumes_from = resumes_from

    @contextlib.contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """The folder that the first process has made, and will give its name."""
        processes.wait_for_all()
        with atomic.disk_errors(self.path):
            yield atomic.partial_path(self.checkpoints / checkpoints.name_of(step))
        processes.wait_for_all()
        processes.wait_for_all()

    def write(self, name: str, content: str | bytes) -> None:
        """Nothing: the first process writes."""

    def log(self, metrics: dict[str, Any]) -> None:
        """Nothing: the first process writes."""

    def log_sample(self, sample: dict[str, Any]) -> None:
        """Nothing: the first process writes."""


def shared(make: Callable[[], RunFolder]) -> RunFolder:
    """The run folder that the first process creates or reopens; the others get one that leaves writing to it."""
    if processes.is_first():
        folder = make()
        processes.same((folder.path, folder.resumes_from))
        return folder
    return FollowersFolder(*processes.same(None))


def create(resolved: CommandConfig, out: Path | None, options: dict[str, Any] | None = None) -> RunFolder:
    """Create and lock the folder of a new run and write its first config.yaml and lineage.json.

    Args:
        out: the folder; None takes `runs/<stage>-<command>-<n>` with the next free n.
        options: what was typed (kept, with all that was asked for, to be compared when a run is resumed).
    Raises:
        RunError: the folder exists already, or can't be written.
    """
    path = out or next_free(f"{resolved.stage}-{resolved.command}")
    make_folder(path)
    folder = RunFolder(path, _lock(path))
    record = {
        "command": f"{resolved.stage} {resolved.command}",
        "argv": sys.argv[1:],
        **lineage.place(path),
        "options": options or {},
        "asked": resolved.model_dump(mode="json"),
        "seed": getattr(getattr(resolved, "run", None), "seed", None),
        "parents": [],
        "versions": lineage.versions(),
        "git_commit": lineage.git_commit(),
    }
    folder.write("lineage.json", json.dumps(record, indent=1))
    folder.freeze(resolved)
    return folder


def make_folder(path: Path) -> None:
    """Make the folder of a new run, or of several.

    Raises:
        RunError: something is there already, or it can't be made.
    """
    with atomic.disk_errors(path):
        if path.exists() and (not path.is_dir() or not _is_unused(path)):
            hint = "choose another --out"
            if is_run(path):
                hint += f", or continue it with --resume {path}"
            raise RunError(f"{path}: exists already and is never overwritten; {hint}")
        path.mkdir(parents=True, exist_ok=True)


def _is_unused(path: Path) -> bool:
    """Whether a folder is empty, or a command was killed in it before it was a run, or one of several seeds."""
    names = {entry.name for entry in path.iterdir()}
    begun = {".lock", "lineage.json", ".lineage.json.partial", ".config.yaml.partial"}
    begun_seeds = {"seeds.json", ".seeds.json.partial", ".config.yaml.partial"}
    return names <= begun_seeds or (".lock" in names and names <= begun)


def reopen(path: Path) -> RunFolder:
    """Lock the folder of a run to continue it; `resumes_from` is its newest whole checkpoint, or None.

    Raises:
        RunError: it is no run folder, or another process has it.
    """
    if not is_run(path):
        raise RunError(f"{path}: no run folder (it has no config.yaml and lineage.json)")
    folder = RunFolder(path, _lock(path))
    atomic.finish_replacements(path)
    if folder.checkpoints.is_dir():
        atomic.finish_replacements(folder.checkpoints)
        folder.resumes_from = checkpoints.newest_whole(folder.checkpoints)
    return folder


def restart(folder: RunFolder) -> None:
    """Clear what a run without a checkpoint had begun, so that it starts again in the same folder."""
    if not processes.is_first():
        return
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder.path / name).unlink(missing_ok=True)
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder.path / name, ignore_errors=True)


def discard_if_empty(path: Path) -> None:
    """Remove a run folder in which a command has made nothing yet; it must not be locked any more."""
    made_first = {"config.yaml", "lineage.json", "seeds.json", ".lock"}
    if processes.is_first() and {entry.name for entry in path.iterdir()} <= made_first:
        shutil.rmtree(path)


def is_run(path: Path) -> bool:
    """Whether a path is a run folder."""
    return (path / "config.yaml").is_file() and (path / "lineage.json").is_file()


def read_result(path: Path) -> dict[str, Any] | None:
    """The result of a finished run; None while it is not finished."""
    file = path / "result.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{file}: can't be read ({error}); delete it to finish the run again with --resume") from None


def state(path: Path) -> str:
    """`running`, `finished` or `interrupted`."""
    try:
        with (path / ".lock").open(encoding="utf-8") as file:  # not to write: it may be another's
            _hold(file, path)
    except FileNotFoundError:  # a copy
        pass
    except RunError:
        return "running"
    return "finished" if (path / "result.json").is_file() else "interrupted"


def next_free(stem: str) -> Path:
    """`runs/<stem>-<n>` with the next free n; for a command the stem is `<stage>-<command>`."""
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)")
    names = [pattern.fullmatch(p.name) for p in RUNS.iterdir()] if RUNS.is_dir() else []
    return RUNS / f"{stem}-{max((int(m[1]) for m in names if m), default=0) + 1}"


def require_disk(path: Path, needed_bytes: float, what: str) -> None:
    """Check before the start that the disk has room.

    Raises:
        RunError: there is less free space than `needed_bytes`.
    """
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise RunError(
            f"{path}: {free / 1e9:.2f} GB free, but {what} need about {needed_bytes / 1e9:.2f} GB; "
            "free some disk or choose another --out"
        )


def _lock(path: Path) -> IO[str]:
    """Hold a run folder; released when the file is closed or the process dies.

    Raises:
        RunError: another process holds it.
    """
    with atomic.disk_errors(path):
        file = (path / ".lock").open("a+", encoding="utf-8")
    _hold(file, path)
    return file


def _hold(file: IO[str], path: Path) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RunError(f"{path}: in use by another process; wait for it, or stop it") from None


def _line(sample: dict[str, Any]) -> str:
    return json.dumps(sample, ensure_ascii=False) + "\n"
