"""What takes the time of a training step: a trace of some steps, and the operators that take most."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from torch import profiler
from torch.autograd import DeviceType

from fledge import console, processes
from fledge.rundir import RunFolder
from pretrain.config import TrainConfig

FOLDER = "profile"  # of a run
SKIPPED = 5  # steps: the first ones compile and allocate
ROWS = 25


@contextlib.contextmanager
def traced(settings: TrainConfig, folder: RunFolder) -> Iterator[Callable[[], object]]:
    """Yield what is to be called after each step; the steps to trace are written to `profile/` of the run.

    Only the first process is traced, and once in a run: a resumed one that has its trace makes none. A run that ends
    before writes the steps that it has, if any.
    """
    if not settings.profile or not processes.is_first() or (folder.path / FOLDER).is_dir():
        yield lambda: None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # with any lower one it writes to stderr by itself
    on_gpu = settings.run.device == "cuda"
    kinds = [profiler.ProfilerActivity.CPU, *([profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    steps = profiler.schedule(skip_first=SKIPPED, wait=0, warmup=1, active=settings.profile, repeat=1)

    def write(done: Any) -> None:
        with folder.publish(FOLDER) as partial:
            done.export_chrome_trace(str(partial / "trace.json.gz"))
            (partial / "operators.md").write_text(_operators(done, on_gpu), encoding="utf-8")
        console.note(f"{folder.path / FOLDER}: operators.md, and trace.json.gz for ui.perfetto.dev")

    with profiler.profile(activities=kinds, schedule=steps, on_trace_ready=write, acc_events=True) as running:
        yield running.step
    if not (folder.path / FOLDER).is_dir():
        console.warn(f"--profile: the run ended within its first {SKIPPED + 1} steps, which are not traced")


def _operators(done: Any, on_gpu: bool) -> str:
    """torch's table of the operators by the time that they take themselves, without those that they call."""
    operators = done.key_averages()
    steps = [event for event in operators if event.key.startswith("ProfilerStep")]  # a GPU has its own of each
    num_steps = sum(event.count for event in steps if event.device_type == DeviceType.CPU)
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = operators.table(sort_by=time, row_limit=ROWS, max_name_column_width=60)
    return f"# Operators of {num_steps} steps\n\n```\n{table}```\n"
