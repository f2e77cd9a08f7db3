"""How many steps fit into a time budget, measured before step 0 on a throw-away copy."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from fledge import processes
from fledge.errors import ConfigError

PROBE_SHARE = 0.03  # of the budget is spent on measuring, within these bounds
PROBE_SECONDS = (1.0, 10.0)
END_SHARE, END_SECONDS = 1 / 3, 30.0  # of the budget that the last validation may take; what it always may
SAFETY = 0.97  # of the budget is planned for: machines slow down when they get warm


@dataclass(frozen=True)
class Costs:
    """Measured seconds of the parts of a run."""

    step_s: float
    validation_window_s: float


def measure(budget_s: float, step: Callable[[int], object], validate: Callable[[int], object]) -> Costs:
    """Time training steps and validation windows.

    Args:
        step: makes optimizer step i on a copy of the run that is thrown away.
        validate: measures the loss over this many windows.
    """
    step(0)  # the first one allocates memory
    started, count = time.perf_counter(), 0
    seconds = min(max(PROBE_SHARE * budget_s, PROBE_SECONDS[0]), PROBE_SECONDS[1])
    while processes.same(count < 3 or time.perf_counter() - started < seconds):
        count += 1
        step(count)
    step_s = (time.perf_counter() - started) / count
    validate(1)
    windows, started = 8, time.perf_counter()
    validate(windows)
    return Costs(*processes.same((step_s, (time.perf_counter() - started) / windows)))


def steps_in(budget_s: float, costs: Costs, every: int, windows: int, all_windows: int) -> int:
    """Steps that fit into a budget together with their validation checks and the last full one.

    Args:
        every: steps between checks of `windows` windows; the last check reads `all_windows`.
    Raises:
        ConfigError: the last check would take most of the budget.
    """
    end_s = all_windows * costs.validation_window_s
    if end_s > max(END_SHARE * budget_s, END_SECONDS):
        raise ConfigError(
            f"--time-budget: the end of a run reads all {all_windows} windows of validation text, {end_s:.0f} s of "
            f"{budget_s:.0f} s; give {math.ceil(end_s / END_SHARE)}s or more, or hold out less with fledge pretrain "
            "prepare --validation-share"
        )
    left = SAFETY * budget_s - end_s
    return max(1, int(left / (costs.step_s + windows * costs.validation_window_s / every)))
