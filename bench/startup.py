"""How long `fledge --help` takes, as a new process."""

import statistics
import subprocess
import sys
import time

from bench.measure import Row


def run() -> list[Row]:
    """Median wall time of the root's help and of a command's."""
    return [
        Row(f"fledge {' '.join(arguments)}", _seconds(arguments), None, None, "< 0.35", "s")
        for arguments in (["--help"], ["pretrain", "train", "--help"])
    ]


def _seconds(arguments: list[str]) -> float:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fledge", *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
