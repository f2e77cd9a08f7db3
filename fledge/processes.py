"""The processes of one run: what they tell each other, and what happens when one of them is lost.

torchrun and the deepspeed launcher start them and set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
All functions work in a run of one process too, where they cost nothing and import no torch.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from fledge.errors import FledgeError, RunFailed, UsageError, first_line

TICK_S = 1.0  # between signs of life
PATIENCE_S = 45.0  # until a process that makes no progress is given up; without a sign of life after a third of it
LEAST_SILENCE_S = 5.0  # but never sooner than this: on a busy machine signs of life come late
GROUP_TIMEOUT = timedelta(minutes=30)  # of one message; rank 0 may write and measure that long on its own


def size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def rank() -> int:
    """The number of this process, from 0; a RANK that a cluster's shell has is none where there is one process."""
    return int(os.environ.get("RANK") or "0") if size() > 1 else 0


def num_local() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")


def is_first() -> bool:
    """Whether this is the process that speaks and writes the run folder."""
    return rank() == 0


def total(*values: float) -> list[float]:
    """The sums of some numbers over all processes; also a point at which all of them wait for each other."""
    if size() == 1:
        return list(values)
    import torch

    # On the CPU, and so through gloo, whatever the model's device.
    summed = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(summed)
    return [float(value) for value in summed]


def wait_for_all() -> None:
    """Return when every process has come here."""
    total(0.0)


def same(value: Any) -> Any:
    """The first process's value, in every process."""
    if size() == 1:
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank, in every process."""
    if size() == 1:
        return [value]
    import torch

    values: list[Any] = [None] * size()
    torch.distributed.all_gather_object(values, value)
    return values


def progress() -> None:
    """Say that this process got on; all processes of a run say so equally often."""
    if _watch:
        _watch.count += 1


@contextlib.contextmanager
def lockstep() -> Iterator[None]:
    """Within this block a process that stops making `progress` is given up, even if it still lives."""
    if _watch:
        _watch.in_lockstep = True
    try:
        yield
    finally:
        if _watch:
            _watch.in_lockstep = False


def set_patience(seconds: float) -> None:
    """Replace PATIENCE_S."""
    if _watch:
        _watch.patience_s = seconds


def require_one(what: str) -> None:
    """Raise a UsageError if there are several processes."""
    if size() > 1:
        raise UsageError(f"{what} runs in one process, here are {size()}; start it without a launcher")


def make_group() -> None:
    """Make torch's process group, once in the life of this process; a single process gets one of its own."""
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if size() == 1:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        return
    # This waits for all, in a call that Python's own handlers can't end.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        distributed.init_process_group(backend, timeout=GROUP_TIMEOUT)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within this block the processes of a run are connected, and each ends when another one is lost.

    Raises:
        RunFailed: a process died, hung or failed; names its rank and machine. Only one process says so.
        UsageError: it is not said where they meet.
    """
    global _watch
    if size() == 1:
        yield
        return
    if missing := {"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise UsageError(
            f"WORLD_SIZE is {size()}, but {', '.join(sorted(missing))} is not set; unset it, or use torchrun"
        )
    from fledge import console

    console.note(f"waiting for {size()} processes at {os.environ['MASTER_ADDR']}")
    make_group()
    watch = _watch = _Watch()
    wait_for_all()
    watch.start()
    try:
        yield
        watch.stop()
        wait_for_all()
    except BaseException as error:
        watch.explain(error)
        raise
    finally:
        watch.stop()
        _watch = None


class _Watch(threading.Thread):
    """Gives signs of life, looks after the next rank, and ends this process when any one is lost."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        from torch.distributed import PrefixStore, TCPStore

        self.count, self.in_lockstep, self.patience_s = 0, False, PATIENCE_S
        self._host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: the group's may be blocked by what this thread watches.
        store = TCPStore(self._host, port, is_master=False, timeout=timedelta(seconds=10))
        # A launcher that starts the processes anew keeps the store.
        self._store = PrefixStore(f"fledge-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._store.set(f"host/{rank()}", socket.gethostname())
        self._store.set(f"alive/{rank()}", "0 0 0")
        self._ended, self._found, self._taken = threading.Event(), threading.Event(), threading.Event()
        self._lost: dict[str, Any] = {}

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        if self.is_alive() and not self._found.is_set():
            self.join()

    def run(self) -> None:
        ticks, seen = 0, ("", 0.0, "", 0.0)
        while not self._ended.wait(TICK_S):
            ticks += 1
            try:
                self._store.set(f"alive/{rank()}", f"{ticks} {self.count} {int(self.in_lockstep)}")
                seen, problem = self._judge(seen)
                if problem:
                    self._report((rank() + 1) % size(), problem, RunFailed.exit_code)
                if self._store.check(["lost"]):
                    self._lost = json.loads(self._store.get("lost"))
            except RuntimeError:  # the store has gone with its process
                text = f"rank 0 on {self._host}, or its launcher, is gone"
                self._lost = {"text": text, "code": RunFailed.exit_code, "by": rank()}
            if self._lost:
                self._found.set()
                break
        if self._lost and not self._taken.wait(2 * TICK_S):
            self._speak()
            os._exit(self._lost["code"])  # the main thread may be stuck in a message to the lost process

    def _judge(self, seen: tuple[str, float, str, float]) -> tuple[tuple[str, float, str, float], str]:
        """What is wrong with the next rank, or nothing; and its last signs, each with the time it was new."""
        sign, sign_at, count, count_at = seen
        now = time.monotonic()
        new_sign, new_count, is_in_lockstep = self._store.get(f"alive/{(rank() + 1) % size()}").decode().split()
        if new_sign != sign:
            sign, sign_at = new_sign, now
        if new_count != count or is_in_lockstep == "0":
            count, count_at = new_count, now
        problem = ""
        if now - sign_at > max(self.patience_s / 3, LEAST_SILENCE_S):
            problem = f"died: no sign of life for {now - sign_at:.0f} s"
        elif now - count_at > self.patience_s and self.count > int(count):
            problem = f"hangs: no progress for {now - count_at:.0f} s while others wait (see --engine.patience)"
        return (sign, sign_at, count, count_at), problem

    def _report(self, who: int, problem: str, code: int) -> None:
        """Tell all processes what is wrong with one; the first report counts."""
        host = self._store.get(f"host/{who}").decode()
        lost = {"text": f"rank {who} on {host} {problem}", "code": code, "by": rank()}
        self._store.compare_set("lost", "", json.dumps(lost))

    def _speak(self) -> None:
        if is_first() or self._lost["by"] == rank():
            print(f"error: {self._lost['text']}", file=sys.stderr, flush=True)

    def explain(self, error: BaseException) -> None:
        """Tell the others why this process ends; raises what stands for `error` if another one is the cause."""
        # torchrun ends all processes when one is lost; there is time enough to say which.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, RuntimeError):  # perhaps a message to a process that is gone: wait for the verdict
            self._found.wait(max(self.patience_s / 3, LEAST_SILENCE_S) + 5 * TICK_S)
        if self._found.is_set():
            self._taken.set()
            self._speak()
            raise SystemExit(self._lost["code"]) from None
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", RunFailed.exit_code)
        with contextlib.suppress(RuntimeError):
            self._report(rank(), f"stopped: {first_line(error)}", code)
            if is_first():
                self._store.set("said", "")
            elif isinstance(error, FledgeError):  # the first process has the same error, and says so
                self._store.wait(["said"], timedelta(seconds=3 * TICK_S))
        if isinstance(error, FledgeError) and not is_first():
            raise SystemExit(code) from None


_watch: _Watch | None = None
