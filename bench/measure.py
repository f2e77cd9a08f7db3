"""Interleaved timing of two ways to do the same work."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ours: float
    peer: float | None
    ratio: float | None  # above 1: ours is better
    goal: str
    unit: str
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
    """What both do of an amount of work a second, interleaved."""
    ours_s, peer_s, ours_cpu, peer_cpu = interleaved(ours, peer, repeats)
    return Row(name, amount / ours_s, amount / peer_s, peer_s / ours_s, goal, unit, (ours_cpu, peer_cpu))
