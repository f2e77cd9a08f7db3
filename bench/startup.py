"""How long `fledge --help` takes, as a new process."""

import statistics
import time

from bench.measure import Row, process


def run() -> list[Row]:
    """Median wall time of the root's help and of a command's."""
    return [
        Row(f"fledge {' '.join(arguments)}", _seconds(arguments), goal="< 0.35", unit="s")
        for arguments in (["--help"], ["pretrain", "train", "--help"])
    ]


def _seconds(arguments: list[str]) -> float:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        process("fledge", *arguments)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
