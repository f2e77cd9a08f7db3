"""Guards: what they say and when."""

import math
from typing import Any

import pytest
import torch

from fledge.engine import StepResult
from fledge.errors import RunError, RunFailed
from fledge.models.architecture import ModelConfig, build, find_config
from pretrain.config import GuardConfig
from pretrain.guards import LossGuard, check_first_loss, memory_errors

NAN = StepResult(math.nan, math.nan, is_finite=False)


def good(loss: float) -> StepResult:
    return StepResult(loss, 1.0, is_finite=True)


def shape(width: int, **more: Any) -> ModelConfig:
    return find_config("qwen3").sized(vocab_size=1000, context=32, layers=1, width=width, heads=2, **more)


@pytest.mark.parametrize("loss", [math.log(1000) + 1, 2.0, math.nan])
def test_another_first_loss_than_ln_v_stops_the_run(loss: float) -> None:
    with pytest.raises(RunFailed, match=r"step 0: the first loss is .* ln V = 6\.908"):
        check_first_loss(loss, shape(16))


@pytest.mark.parametrize(
    ("name", "width", "is_tied"), [("qwen3", 16, True), ("qwen3", 4096, False), ("nanochat", 512, True)]
)
def test_random_weights_of_any_width_may_start(name: str, width: int, is_tied: bool) -> None:
    config = find_config(name).sized(
        vocab_size=1000, context=32, layers=1, width=width, heads=2, tie_embeddings=is_tied
    )
    ids_BT = torch.randint(0, 1000, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits_BTV = build(config, seed=0)(ids_BT[:, :-1])
    check_first_loss(torch.nn.functional.cross_entropy(logits_BTV.mT, ids_BT[:, 1:]).item(), config)


def test_non_finite_steps_are_skipped_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    guard = LossGuard(GuardConfig(max_skips=2))
    assert [guard.judge(NAN, step) for step in (1, 2)] == ["go on", "go on"]
    assert guard.skipped == 2
    assert "step 2: loss nan, gradient norm nan; update skipped" in capsys.readouterr().err


def test_persistent_non_finite_steps_roll_back_then_fail() -> None:
    guard = LossGuard(GuardConfig(max_skips=0, max_rollbacks=1))
    assert guard.judge(NAN, 1) == "roll back"
    with pytest.raises(RunFailed, match="step 2: 2 non-finite steps in a row, and 1 roll-backs did not help"):
        guard.judge(NAN, 2)


def test_a_finite_step_ends_the_row() -> None:
    guard = LossGuard(GuardConfig(max_skips=1))
    assert [guard.judge(r, i) for i, r in enumerate((NAN, good(3), NAN, good(3)))] == ["go on"] * 4


def test_a_spike_rolls_back_and_a_slow_rise_does_not() -> None:
    guard = LossGuard(GuardConfig(spike=1.5))
    assert guard.judge(good(3.0), 1) == "go on"
    assert guard.judge(good(4.4), 2) == "go on"
    assert guard.judge(good(4.6), 3) == "roll back"


def test_state_survives_a_checkpoint_and_rollbacks_keep_counting() -> None:
    guard = LossGuard(GuardConfig(max_skips=0))
    guard.judge(good(3.0), 1)
    state = guard.state()
    guard.judge(NAN, 2)
    guard.restore(state)
    assert (guard.mean, guard.skipped_in_a_row, guard.skipped, guard.rollbacks) == (3.0, 0, 1, 1)


def test_rollbacks_still_count_after_a_resume() -> None:
    guard, resumed = LossGuard(GuardConfig(max_skips=0)), LossGuard(GuardConfig(max_skips=0))
    guard.judge(NAN, 1)
    resumed.restore(guard.state())
    assert (resumed.skipped, resumed.rollbacks) == (1, 1)


@pytest.mark.parametrize(
    ("microbatch", "sequences", "advice"),
    [(16, 16, "use --batch.microbatch 8"), (9, 9, "use --batch.microbatch 3"), (1, 4, "use a smaller --model")],
)
def test_out_of_memory_names_the_batch_to_use(microbatch: int, sequences: int, advice: str) -> None:
    with pytest.raises(RunError, match=advice), memory_errors(microbatch, sequences):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")


def test_no_microbatch_of_more_than_half_is_advised() -> None:
    with pytest.raises(RunError, match=r"use --batch\.microbatch 2$"), memory_errors(5, 12):
        raise MemoryError


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_errors(1, 1):
        raise RuntimeError("shape mismatch")
