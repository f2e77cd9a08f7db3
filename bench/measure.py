"""Interleaved timing of two ways to do the same work, and the CPU time of processes."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from fledge.errors import RunFailed


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ours: float
    peer: float | None = None
    ratio: float | None = None  # above 1: ours is better
    goal: str = ""
    unit: str = ""
    cpu_s: tuple[float, float] | None = None  # CPU-seconds (user and system) a repeat, ours and the peer's


def interleaved(ours: Callable[[], object], peer: Callable[[], object], repeats: int = 5) -> tuple[float, ...]:
    """Median seconds of ours and the peer's, taken in turns, after one warm-up each; then CPU-seconds likewise."""
    times: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for index, work in enumerate((ours, peer)):
            wall, used = time.perf_counter(), time.process_time()
            work()
            if repeat:
                times[index].append(time.perf_counter() - wall)
                cpu[index].append(time.process_time() - used)
    return tuple(statistics.median(values) for values in (*times, *cpu))


def rates(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    amount: float,
    unit: str,
    goal: str,
    repeats: int = 5,
) -> Row:
    """What both do of an amount of work a second (a CPU-second, where the unit says so), interleaved."""
    ours_s, peer_s, *cpu = interleaved(ours, peer, repeats)
    if unit.endswith("/CPU-s"):
        ours_s, peer_s = cpu
    return Row(name, amount / ours_s, amount / peer_s, peer_s / ours_s, goal, unit, (cpu[0], cpu[1]))


def process(module: str, *arguments: str, **environment: str) -> tuple[float, str]:
    """Run a Python module as a process: its CPU-seconds (user and system), and what it wrote to stdout.

    Raises:
        RunFailed: it failed; ends with its last line of stderr.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RunFailed(f"{module} {' '.join(arguments[:3])}: {done.stderr.strip().splitlines()[-1]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout
