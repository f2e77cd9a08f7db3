"""The DeepSpeed engine in one process against the plain one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.engine import StepResult, TorchEngine, recompute_blocks
from fledge.errors import RunError
from fledge.models import architecture
from fledge.models.architecture import LanguageModel
from pretrain import optimizer
from pretrain.config import OptimConfig

deepspeed = pytest.importorskip("deepspeed")
# Of DeepSpeed and of what it calls in torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

OPTIM = {"weight_decay": 0.1, "clip_norm": 1.0}


def test_deepspeed_says_nothing_on_stdout_whoever_imports_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-c", "import rlhf.session, deepspeed"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def make_model() -> LanguageModel:
    # Wide enough that ZeRO 3 shares out the embeddings and matrices (more than 10,000 weights).
    shape = architecture.find_config("gpt2").sized(vocab_size=300, context=16, layers=2, width=64, heads=2)
    return architecture.build(shape, 0, 64)


def batches(count: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Steps of two microbatches of two sequences; they repeat, so that there is something to learn."""
    rows_BS = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(0))
    for step in range(count):
        rows = (rows_BS + step % 3) % 300
        yield [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in rows.split(2)]


def make_engine(model: LanguageModel, zero: int | None, kind: str = "adamw", **plan: Any) -> Any:
    """An engine with ZeRO; None is the plain one."""
    from fledge.deepspeed_engine import DeepSpeedEngine, Plan

    config = OptimConfig(optimizer=kind, **OPTIM)  # type: ignore[arg-type]
    if zero is None:
        return TorchEngine(model, optimizer.build(model, config), config.clip_norm, "cpu", torch.float32)
    is_theirs = kind == "muon" and zero > 0
    settings = {"clip_norm": 0.0 if is_theirs else config.clip_norm, "dtype": torch.float32} | plan
    make = optimizer.deepspeeds_muon if is_theirs else optimizer.build
    return DeepSpeedEngine(model, make(model, config), Plan(zero, 4, 2, device="cpu", **settings))


def train(engine: Any, count: int, first: int = 0) -> list[StepResult]:
    results = []
    for step, batch in enumerate(batches(first + count)):
        if step >= first:
            engine.set_learning_rate(min(1.0, (step + 1) / 5))
            results.append(engine.step(batch))
    return results


def losses(results: list[StepResult]) -> list[float]:
    return [result.loss for result in results]


@pytest.fixture(scope="module")
def plain() -> dict[str, list[StepResult]]:
    """The plain engine's steps with each optimizer."""
    return {kind: train(make_engine(make_model(), None, kind), 30) for kind in ("adamw", "muon")}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_adamw_equals_the_plain_engine_at_every_stage_and_resumes_bit_for_bit(
    zero: int, plain: dict[str, list[StepResult]], tmp_path: Path
) -> None:
    model = make_model()
    engine = make_engine(model, zero)
    first = train(engine, 10)
    state = engine.save(tmp_path)
    second = train(engine, 10, first=10)
    assert losses(first + second) == pytest.approx(losses(plain["adamw"][:20]), abs=1e-5)
    norms = [result.gradient_norm for result in plain["adamw"][:20]]
    assert [result.gradient_norm for result in first + second] == pytest.approx(norms, rel=1e-4)
    fresh = make_engine(make_model(), zero)
    fresh.restore(tmp_path, state)
    assert train(fresh, 10, first=10) == second
    with engine.whole_weights() as one, fresh.whole_weights() as other:
        ours, theirs = one.to_hf_state(), other.to_hf_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["transformer.wte.weight"].shape == (300, 64)


def test_muon_without_zero_is_ours(plain: dict[str, list[StepResult]]) -> None:
    got = losses(train(make_engine(make_model(), 0, "muon"), 30))
    # Not to the bit: gradients lie elsewhere in memory, so the sum of their norm is rounded otherwise.
    assert got == pytest.approx(losses(plain["muon"]), abs=1e-5)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_muon_with_zero_is_deepspeeds_and_near_ours(zero: int) -> None:
    # qwen3, whose query, key and value are matrices of their own: DeepSpeed takes GPT-2's as one.
    shape = architecture.find_config("qwen3").sized(vocab_size=300, context=16, layers=2, width=32, heads=2)
    config = OptimConfig(weight_decay=OPTIM["weight_decay"], clip_norm=0)
    model = architecture.build(shape, 0, 64)
    ours = TorchEngine(model, optimizer.build(model, config), 0.0, "cpu", torch.float32)
    expected = losses(train(ours, 30))
    theirs = make_engine(architecture.build(shape, 0, 64), zero, "muon")
    assert abs(losses(train(theirs, 30))[-1] - expected[-1]) < 5e-3


def test_deepspeeds_muon_stays_with_its_number_of_processes(tmp_path: Path) -> None:
    engine = make_engine(make_model(), 1, "muon")
    with pytest.raises(RunError, match=r"can't go on from 2 to 1 processes.* continue with 2"):
        engine.restore(tmp_path, {"processes": 2})


class Code:
    """Calls `print` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("ran",)


def test_a_checkpoint_that_runs_code_is_not_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = make_engine(make_model(), 1)
    state = engine.save(tmp_path)
    file = next(tmp_path.rglob("*model_states.pt"))
    torch.save(torch.load(file, weights_only=True) | {"more": Code()}, file)
    for number in (1, 2):  # of processes: as it is, and made universal
        with pytest.raises(RunError, match=rf"{file.name}: may run code \(builtins.print\); delete {tmp_path} to"):
            engine.restore(tmp_path, state | {"processes": number})
    file.write_bytes(b"no zip file")
    with pytest.raises(RunError, match=r"may run code \(Expected input to be a checkpoint"):
        engine.restore(tmp_path, state)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_non_finite_step_changes_nothing(zero: int) -> None:
    engine = make_engine(make_model(), zero)
    train(engine, 1)
    ids_BT, targets_BT = next(batches(1))[0]
    with engine.whole_weights() as model:
        before = {name: tensor.clone() for name, tensor in model.to_hf_state().items()}
    weight = engine.model.final_norm.weight
    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=zero == 3):
        weight.data[3] = torch.nan
    result = engine.step([(ids_BT, targets_BT)] * 2)
    assert not result.is_finite
    with engine.whole_weights() as model:
        after = model.to_hf_state()
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["transformer.ln_f.weight"]


@pytest.mark.parametrize("zero", [None, 3])
def test_recomputed_activations_change_nothing(zero: int | None, plain: dict[str, list[StepResult]]) -> None:
    model = make_model()
    recompute_blocks(model)
    assert losses(train(make_engine(model, zero), 5)) == pytest.approx(
        losses(plain["adamw"][:5]), abs=1e-6 if zero else 0
    )


@pytest.mark.parametrize(("zero", "is_native"), [(0, False), (3, False), (1, True), (2, True), (3, True)])
def test_bfloat16_learns_what_float32_learns(zero: int, is_native: bool, plain: dict[str, list[StepResult]]) -> None:
    engine = make_engine(make_model(), zero, dtype=torch.bfloat16, bf16_weights=is_native)
    got = losses(train(engine, 10))
    # bfloat16 has 8 bits: a few thousandths of a loss of 5.7.
    assert got == pytest.approx(losses(plain["adamw"][:10]), abs=0.03)
    with engine.whole_weights() as model:
        saved = {tensor.dtype for tensor in model.to_hf_state().values()}
    assert saved == {torch.bfloat16 if is_native else torch.float32}
