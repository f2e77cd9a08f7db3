"""`fledge pretrain plan` (also `fledge plan`): what a pretraining run will take on GPUs, before any is rented."""

import dataclasses
from typing import Any

from fledge import config as configs
from fledge import console
from fledge.errors import ConfigError
from fledge.models.architecture import LanguageModel
from fledge.tokens import TextTokenizer
from pretrain import memory, sizing
from pretrain.config import PlanConfig
from pretrain.memory import Memory
from tokenizer import shards

# Of a GPU's memory that a run can't have: CUDA's context, NCCL's and cuBLAS's own, gaps. An assumption.
HEADROOM = 0.08
RECOMPUTED = 3 / 4  # of the speed: one forward pass more beside a forward and a backward of twice its work
HEADER = ["ZeRO", "recompute", "weights", "gradients", "optimizer", "activations", "logits", "buffers", "GB a GPU"]
HEADER += ["microbatch", "tokens/s", "days", "GPU-hours"]


@dataclasses.dataclass(frozen=True)
class Line:
    """One way to run a config on some GPUs."""

    zero: int
    recompute: bool
    microbatch: int  # sequences a GPU, the most that fit and divide its share of a step; 1 where none fits
    memory: Memory
    fits: bool
    tokens_per_s: float  # of all GPUs
    tokens: float
    days: float
    gpu_hours: float
    cost: float | None


def run(config: PlanConfig) -> dict[str, Any]:
    """Print every way to run a config, and which to choose.

    Raises:
        ConfigError: none fits the GPUs' memory, or they can't share a step's sequences.
    """
    if config.size is not None:
        config = configs.with_values(config, sizing.from_depth(config))
    if config.batch.sequences % config.gpus:
        raise ConfigError(f"--gpus {config.gpus} can't share --batch.sequences {config.batch.sequences}; use a divisor")
    model = memory.on_meta(config, _vocab_size(config))
    lines = [_line(config, model, zero, again) for zero in range(4) for again in (False, True)]
    chosen = choose(lines)
    console.result(_text(config, model, lines, chosen))
    if chosen is None:
        raise ConfigError(_advice(config, model, lines))
    return {
        "parameters": model.num_parameters(),
        "flops_per_token": model.flops_per_token(config.model.context),
        "lines": [_json(line) for line in lines],
        "chosen": _json(chosen),
        "checkpoint_bytes": checkpoint_bytes(config, model, chosen.zero),
        "model_bytes": 4 * model.num_parameters(),
    }


def choose(lines: list[Line]) -> Line | None:
    """The fastest line that fits, and among equals the lowest ZeRO stage: it communicates least.

    ZeRO 0 to 2 move twice the weights' numbers a step, stage 3 three times (Rajbhandari et al. 2020, section 7).
    """
    fitting = [line for line in lines if line.fits]
    return max(fitting, key=lambda line: (line.tokens_per_s, -line.zero), default=None)


def checkpoint_bytes(config: PlanConfig, model: LanguageModel, zero: int) -> int:
    """Of one checkpoint over all GPUs: weights, moments, and the masters of ZeRO 1-3."""
    numbers = sum(p.numel() for p in model.parameters())
    each = (2 if zero and config.engine.bf16 == "weights" else 4) + (4 if zero else 0)
    return each * numbers + memory.moment_bytes(config, model)


def _vocab_size(config: PlanConfig) -> int:
    if not config.data:
        return config.vocab_size
    return TextTokenizer.from_folder(shards.read_index(config.data).folder).vocab_size


def _line(config: PlanConfig, model: LanguageModel, zero: int, recompute: bool) -> Line:
    share = config.batch.sequences // config.gpus
    limit = config.gpu_memory * 1e9 * (1 - HEADROOM)

    def needs(microbatch: int) -> Memory:
        return memory.predict(
            config, model, microbatch=microbatch, num_gpus=config.gpus, zero=zero, recompute=recompute
        )

    divisors = [number for number in range(share, 0, -1) if share % number == 0]
    microbatch = next((number for number in divisors if needs(number).total <= limit), 1)
    needed = needs(microbatch)
    flops = model.flops_per_token(config.model.context)
    per_gpu = config.tokens_per_s or config.mfu * config.gpu_tflops * 1e12 / flops
    rate = per_gpu * config.gpus * (RECOMPUTED if recompute else 1)
    tokens = float(config.run.max_steps * config.batch.sequences * config.model.context)
    if config.time_budget:
        tokens = rate * configs.parse_duration(config.time_budget)
    gpu_hours = config.gpus * tokens / rate / 3600
    cost = None if config.price is None else gpu_hours * config.price
    return Line(
        zero,
        recompute,
        microbatch,
        needed,
        fits=needed.total <= limit,
        tokens_per_s=rate,
        tokens=tokens,
        days=tokens / rate / 86400,
        gpu_hours=gpu_hours,
        cost=cost,
    )


def _text(config: PlanConfig, model: LanguageModel, lines: list[Line], chosen: Line | None) -> str:
    count, shape = console.format_count, config.model
    speed = f"{config.mfu:.0%} of {config.gpu_tflops:g} TFLOP/s, assumed"
    if config.tokens_per_s:
        speed = f"{count(config.tokens_per_s)} tokens/s a GPU, measured"
    parts = [
        f"{shape.architecture}: {model.num_parameters():,} parameters; {shape.layers} layers, {shape.width} wide, "
        f"context {shape.context}, {model.config.vocab_size:,} tokens",
        f"{config.gpus} GPU{'s' if config.gpus > 1 else ''} of {config.gpu_memory:g} GB, of which {1 - HEADROOM:.0%} "
        f"are used; {speed}; communication is not counted. GB a GPU:\n",
        console.table(
            [_row(line, line is chosen) for line in lines], [*HEADER, *([] if config.price is None else ["cost"]), ""]
        ),
    ]
    if chosen:
        size = checkpoint_bytes(config, model, chosen.zero)
        options = f"--batch.microbatch {chosen.microbatch}"
        if config.gpus > 1 or chosen.zero:
            options = f"--engine.zero {chosen.zero} {options}"
        if chosen.recompute != config.engine.recompute:
            options += " --engine.recompute" if chosen.recompute else " --engine.no-recompute"
        parts += [
            f"\n{count(chosen.tokens)} tokens. A checkpoint has {size / 1e9:.1f} GB, the model "
            f"{4 * model.num_parameters() / 1e9:.2f} GB.",
            f"Chosen: {options}",
        ]
    return "\n".join(parts)


def _row(line: Line, is_chosen: bool) -> list[str]:
    sizes = [f"{part / 1e9:.2f}" for part in dataclasses.astuple(line.memory)]
    row = [str(line.zero), "yes" if line.recompute else "no", *sizes, f"{line.memory.total / 1e9:.1f}"]
    cost = [] if line.cost is None else [f"{line.cost:,.0f}"]
    if not line.fits:
        return [*row, "", "", "", "", *("" for _ in cost), "too large"]
    times = [f"{line.tokens_per_s:,.0f}", f"{line.days:.3g}", f"{line.gpu_hours:,.1f}"]
    return [*row, str(line.microbatch), *times, *cost, "chosen" if is_chosen else ""]


def _json(line: Line) -> dict[str, Any]:
    return dataclasses.asdict(line) | {"total_bytes": line.memory.total}


def _advice(config: PlanConfig, model: LanguageModel, lines: list[Line]) -> str:
    """What is too large, and what would do."""
    least = min(lines, key=lambda line: line.memory.total)
    parts = dataclasses.asdict(least.memory)
    largest = max(parts, key=lambda name: int(parts[name]))
    limit = config.gpu_memory * (1 - HEADROOM)
    more = next(
        (
            gpus
            for gpus in range(2 * config.gpus, config.batch.sequences + 1, config.gpus)
            if config.batch.sequences % gpus == 0
            and memory.predict(config, model, microbatch=1, num_gpus=gpus, zero=3, recompute=True).total <= limit * 1e9
        ),
        None,
    )
    advice = f"use --gpus {more} with --engine.zero 3 --engine.recompute, " if more else "use "
    advice += "GPUs with more memory"
    if config.engine.bf16 == "autocast":
        advice += ", --engine.zero 3 with --engine.bf16 weights"
    return (
        f"nothing fits: ZeRO {least.zero}{' with recompute' if least.recompute else ''} needs least, "
        f"{least.memory.total / 1e9:.1f} GB a GPU at one sequence (of them {largest} {parts[largest] / 1e9:.1f}), and "
        f"{limit:.1f} are there; {advice}, or a smaller --model.context, --model.layers or --model.width"
    )
