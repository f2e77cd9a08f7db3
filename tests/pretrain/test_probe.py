"""Steps that fit into a time budget."""

import pytest

from fledge.errors import ConfigError
from pretrain.probe import SAFETY, Costs, measure, steps_in


def test_steps_worked_by_hand() -> None:
    # 97 s planned, 10 windows of 0.5 s at the end leave 92 s; a step costs 0.1 s and 2 windows of 0.5 s every 10
    assert steps_in(100, Costs(step_s=0.1, validation_window_s=0.5), every=10, windows=2, all_windows=10) == int(
        (100 * SAFETY - 5) / (0.1 + 0.1)
    )


def test_there_is_always_a_step() -> None:
    assert steps_in(0.1, Costs(1.0, 0.001), every=10, windows=2, all_windows=10) == 1


def test_a_last_validation_that_takes_most_of_the_budget_is_refused() -> None:
    told = r"reads all 400 windows of validation text, 40 s of 20 s; give 120s or more, or hold out less with fledge"
    with pytest.raises(ConfigError, match=told):
        steps_in(20, Costs(0.1, 0.1), every=10, windows=2, all_windows=400)
    assert steps_in(120, Costs(0.1, 0.1), every=10, windows=2, all_windows=400) > 1
    assert steps_in(20, Costs(0.1, 0.1), every=10, windows=2, all_windows=290) == 1  # half a minute harms nobody


def test_measure_counts_its_steps_from_zero() -> None:
    steps: list[int] = []
    windows: list[int] = []
    costs = measure(1.0, steps.append, windows.append)
    assert steps == list(range(len(steps)))
    assert len(steps) >= 4
    assert costs.step_s > 0
    assert windows == [1, 8]
