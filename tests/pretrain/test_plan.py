"""`fledge plan`: what it predicts, against what is measured here."""

import dataclasses
import gc
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge import config
from fledge.__main__ import run
from fledge.deepspeed_engine import DeepSpeedEngine, Plan
from fledge.engine import TorchEngine, recompute_blocks
from fledge.models import architecture
from fledge.models.architecture import LanguageModel
from pretrain import memory, optimizer, plan, sizing
from pretrain.config import PlanConfig

ARCHITECTURES = ["gpt2", "qwen3", "nanochat"]
VOCABULARY, MICROBATCH = 1000, 8


def settings(name: str, **values: Any) -> PlanConfig:
    """A model of 12 layers on a CPU."""
    base = {"model.architecture": name, "model.context": 128, "model.layers": 12, "model.width": 128}
    base |= {"optim.optimizer": "adamw", "run.device": "cpu", "run.dtype": "float32"}
    return config.with_values(PlanConfig(), base | {key.replace("__", "."): v for key, v in values.items()})


def real_model(wanted: PlanConfig) -> LanguageModel:
    return architecture.build(sizing.architecture_of(wanted.model, VOCABULARY), 0, sizing.VOCABULARY_MULTIPLE)


def predicted(wanted: PlanConfig, **how: Any) -> memory.Memory:
    return memory.predict(wanted, memory.on_meta(wanted, VOCABULARY), **({"microbatch": MICROBATCH} | how))


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert run(["plan", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_transformers(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = memory.on_meta(settings(name), VOCABULARY)
    assert {p.device.type for p in ours.parameters()} == {"meta"}
    content = dict(ours.config.to_hf())
    del content["architectures"], content["model_type"]
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **content))
    assert ours.num_parameters() == theirs.num_parameters()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_block_keeps_the_bytes_that_autograd_saves(name: str, kv_heads: int) -> None:
    wanted = settings(name, model__kv_heads=kv_heads if name != "gpt2" else None)
    shape = sizing.architecture_of(wanted.model, VOCABULARY)
    saved = [_saved_bytes(dataclasses.replace(shape, layers=layers)) for layers in (2, 3)]
    tokens = MICROBATCH * wanted.model.context
    assert saved[1] - saved[0] == tokens * shape.kept_bytes(compute=4, stream=4)


def test_under_autocast_copies_of_the_matrices_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # DeepSpeed's ZeRO 3 replaces it in the whole process, for good.
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    # 520 positions: up to 512 a CPU attends by plain products, which a GPU does not.
    wanted = settings("gpt2", model__context=520, run__dtype="bfloat16")
    shape = sizing.architecture_of(wanted.model, VOCABULARY)
    saved = [_saved_bytes(dataclasses.replace(shape, layers=layers), True) for layers in (2, 3)]
    copies = 2 * 12 * 128**2  # the four matrices of a block in bfloat16
    assert saved[1] - saved[0] == MICROBATCH * 520 * shape.kept_bytes(compute=2, stream=4) + copies


def _saved_bytes(shape: architecture.ModelConfig, autocast: bool = False) -> int:
    """What autograd saves from a forward pass besides the weights, each storage once."""
    model = architecture.build(shape, 0).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids_BT = torch.zeros(MICROBATCH, shape.context, dtype=torch.long)
    keeping = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with keeping, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = model.hidden(ids_BT)
    assert hidden.requires_grad
    return sum(storage.nbytes() for key, storage in storages.items() if key not in weights)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_peak_of_a_whole_step_is_as_predicted(name: str, recompute: bool) -> None:
    error = _error_of_peak(settings(name), VOCABULARY, recompute)
    # What backward passes hold for a moment is an estimate; it is all of the error.
    assert abs(error) < (0.1 if recompute else 0.04)


def test_the_peak_is_as_predicted_where_logits_are_most_of_it() -> None:
    assert abs(_error_of_peak(settings("gpt2", model__layers=1), 16_384, False)) < 0.04


def _error_of_peak(wanted: PlanConfig, vocabulary: int, recompute: bool) -> float:
    """How much more is predicted than a step takes, as a share, after checking the parts that are exact."""
    model = architecture.build(sizing.architecture_of(wanted.model, vocabulary), 0, sizing.VOCABULARY_MULTIPLE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if recompute:
        recompute_blocks(model)
    adamw = optimizer.build(model, wanted.optim)
    engine = TorchEngine(model, adamw, 1.0, "cpu", torch.float32)
    ids_BT = torch.zeros(MICROBATCH, wanted.model.context, dtype=torch.long)
    engine.step([(ids_BT, ids_BT)])
    weights = sum(p.nbytes for p in model.parameters())
    moments = sum(t.nbytes for state in adamw.state.values() for t in state.values() if t.ndim)
    peak = weights + moments + _peak_of_step(engine, [(ids_BT, ids_BT)] * 2)
    torch.set_num_threads(threads)

    found = memory.predict(wanted, model, microbatch=MICROBATCH, recompute=recompute)
    assert (found.weights, found.gradients, found.optimizer) == (weights, weights, moments)
    error = found.total / peak - 1
    name = wanted.model.architecture
    print(f"{name}, recompute {recompute}: {found.total / 1e6:.1f} MB predicted, {error:+.1%}")
    return error


def _peak_of_step(engine: TorchEngine, microbatches: Any) -> int:
    """The most bytes that a step holds at once, from torch's record of each allocation."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        engine.step(microbatches)
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("bf16", ["autocast", "weights"])
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_deepspeed_holds_the_weights_and_optimizer_that_are_predicted(zero: int, bf16: str) -> None:
    pytest.importorskip("deepspeed")
    is_bf16 = bf16 == "weights"
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    wanted = settings(
        "gpt2", model__layers=2, engine__bf16=bf16, engine__zero=zero, run__dtype=str(dtype).split(".")[1]
    )
    before = _live_tensors()  # kept, so that none of them makes room for another
    model = real_model(wanted)
    how = Plan(zero, 4, 2, 1.0, "cpu", dtype, is_bf16)
    engine = DeepSpeedEngine(model, optimizer.build(model, wanted.optim), how)
    ids_BT = torch.zeros(2, wanted.model.context, dtype=torch.long)
    engine.step([(ids_BT, ids_BT)] * 2)
    held = _bytes_of(_live_tensors()) - _bytes_of(before)
    found = predicted(wanted)
    # Stage 3 keeps its gradients and its message between steps.
    kept = found.gradients + (2 if is_bf16 else 4) * memory.BUCKET if zero == 3 else 0
    assert held == pytest.approx(found.weights + found.optimizer + kept, rel=0.001)


def _live_tensors() -> list[torch.Tensor]:
    gc.collect()
    return [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter) and not o.is_meta]


def _bytes_of(tensors: list[torch.Tensor]) -> int:
    """Of their storages, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_stages_divide_as_in_the_zero_paper() -> None:
    wanted = settings("gpt2", engine__bf16="weights", engine__zero=1, run__dtype="bfloat16")
    numbers = sum(p.numel() for p in memory.on_meta(wanted, VOCABULARY).parameters())
    for zero, each in [(1, 4 + 12 / 64), (2, 2 + 14 / 64), (3, 16 / 64)]:  # figure 1 with K = 12
        found = predicted(wanted, zero=zero, num_gpus=64)
        state = found.weights + found.gradients + found.optimizer
        assert state == pytest.approx(each * numbers, rel=1e-5)


def test_muon_keeps_one_moment_of_a_block_s_matrices() -> None:
    wanted = settings("qwen3", optim__optimizer="muon")
    model = real_model(wanted)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    muon = optimizer.build(model, wanted.optim)
    muon.step()
    moments = sum(t.nbytes for state in muon.state.values() for t in state.values() if t.ndim)
    assert memory.moment_bytes(wanted, memory.on_meta(wanted, VOCABULARY)) == moments


def test_the_speed_is_that_of_the_published_run_that_the_default_names(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "gpt2-guide", "--model.context=1024", "--batch.sequences=512", "--price=2"]
    chosen = planned(capsys, *options)["chosen"]
    assert chosen["tokens_per_s"] == pytest.approx(463_000, rel=0.01)
    tokens = 5000 * 512 * 1024
    assert chosen["gpu_hours"] == pytest.approx(tokens / chosen["tokens_per_s"] / 3600)
    assert chosen["cost"] == pytest.approx(2 * chosen["gpu_hours"])
    eight = planned(capsys, *options, "--gpus=8")["chosen"]
    assert eight["gpu_hours"] == pytest.approx(chosen["gpu_hours"])
    assert eight["days"] == pytest.approx(chosen["days"] / 8)


def test_a_deeper_model_takes_the_time_that_a_flatter_one_s_mfu_gives() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small, large = (settings("gpt2", model__layers=layers) for layers in (4, 12))
    engines = [_engine(wanted) for wanted in (small, large)]
    ids_BT = torch.zeros(MICROBATCH, 128, dtype=torch.long)
    seconds = [float("inf")] * 2
    for _ in range(4):  # by turns, and the fastest of each, as the machine has other work, too
        for number, engine in enumerate(engines):
            started = time.process_time()
            engine.step([(ids_BT, ids_BT)])
            seconds[number] = min(seconds[number], time.process_time() - started)
    torch.set_num_threads(threads)
    rates = [ids_BT.numel() / s for s in seconds]
    mfu = rates[0] * engines[0].model.flops_per_token(128) / 1e12
    wanted = config.with_values(large, {"mfu": mfu, "gpu_tflops": 1})
    told = plan._line(wanted, memory.on_meta(wanted, VOCABULARY), 0, False).tokens_per_s
    print(f"{told:.0f} tokens/s predicted, {told / rates[1] - 1:+.0%}")
    assert 0.6 < told / rates[1] < 1.4


def _engine(wanted: PlanConfig) -> TorchEngine:
    model = real_model(wanted)
    return TorchEngine(model, optimizer.build(model, wanted.optim), 1.0, "cpu", torch.float32)


def test_a_measured_speed_replaces_the_assumed_one(capsys: pytest.CaptureFixture[str]) -> None:
    lines = planned(capsys, "--config=gpt2-guide", "--gpus=4", "--tokens-per-s=1000")["lines"]
    assert {line["tokens_per_s"] for line in lines} == {4000, 3000}  # 3000 with recompute


def test_the_lowest_stage_that_fits_at_full_speed_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = []
    for gigabytes in (80, 12, 10, 8):
        options = ["--model.layers=24", "--model.width=1024", "--model.heads=16", "--batch.sequences=64"]
        options += ["--gpus=64", "--config=gpt2-guide", f"--gpu-memory={gigabytes}", "--model.context=4096"]
        line = planned(capsys, *options)["chosen"]
        chosen.append((line["zero"], line["recompute"]))
    assert chosen == [(0, False), (1, False), (2, False), (1, True)]


def test_the_microbatch_is_the_largest_that_fits() -> None:
    wanted = config.with_values(settings("gpt2"), {"batch.sequences": 48, "gpu_memory": 0.25})
    model = memory.on_meta(wanted, VOCABULARY)
    line = plan._line(wanted, model, 0, False)
    limit = 0.25e9 * (1 - plan.HEADROOM)
    fitting = [n for n in range(1, 49) if 48 % n == 0 and predicted(wanted, microbatch=n, zero=0).total <= limit]
    assert line.fits
    assert line.microbatch == max(fitting) < 48


def test_a_time_budget_gives_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = planned(capsys, "--config=gpt2-guide", "--time-budget=10m")["chosen"]
    assert chosen["days"] == pytest.approx(600 / 86400)
    assert chosen["tokens"] == pytest.approx(600 * chosen["tokens_per_s"])


def test_the_vocabulary_of_shards_counts(
    story_shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = planned(capsys, "--config=hamlet", "--data", str(story_shards))["parameters"]
    assert few == planned(capsys, "--config=hamlet", "--vocab-size=300")["parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus=3"], "--gpus 3 can't share --batch.sequences 16; use a divisor"),
        (
            ["--gpus=2", "--gpu-memory=12", "--model.layers=96", "--model.width=1536"],
            "nothing fits: ZeRO 3 with recompute needs least",
        ),
        (
            ["--gpus=2", "--gpu-memory=20", "--model.layers=48", "--model.width=1536"],
            "use --gpus 4 with --engine.zero 3",
        ),
        (["--init=x"], "a plan takes the shape from the group 'model'"),
        (["--config=gpt2-giude"], "'fledge pretrain train' ships no such config; did you mean 'gpt2-guide'?"),
    ],
)
def test_errors_say_what_to_do(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--config=gpt2-guide", *options]) == 1
    assert message in capsys.readouterr().err
