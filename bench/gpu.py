"""One GPU, one call of under nine minutes: speed and memory against peers and goals, as JSON and a Markdown table.

`python -m bench.gpu --out FOLDER [--tiny] [--only NAME,...]`. Each part runs as a process under a time limit of its
own; what it has measured is written when it ends, also when it failed or was cut off. FLEDGE_NANOGPT: nanoGPT's folder.
--tiny goes through all of it on a CPU, in this process and without compiling: its numbers mean nothing.
"""

import contextlib
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from bench.measure import Row
from fledge import console, lineage
from fledge.errors import ConfigError, DataError

TOTAL_S = 530  # under nine minutes, with what starting and writing takes


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: str
    dtype: str
    shape: dict[str, int]  # of the model that is trained and that generates
    vocab_size: int
    compiles: bool
    microbatch: int
    sequences: int  # a step
    steps: int  # timed
    rows: int  # generated side by side
    new_tokens: int
    policy: dict[str, int]  # the shape that PPO trains
    episodes: int


H200 = Scale(
    *("cuda", "bfloat16", {"layers": 12, "width": 768, "heads": 12, "context": 1024}, 50257),
    *(True, 64, 512, 4, 256, 128, {"layers": 12, "width": 768, "heads": 12, "context": 256}, 256),
)
TINY = Scale(
    *("cpu", "float32", {"layers": 1, "width": 32, "heads": 2, "context": 32}, 300),
    *(False, 2, 4, 1, 4, 4, {"layers": 1, "width": 32, "heads": 2, "context": 32}, 8),
)


def matmul(scale: Scale) -> Iterator[Row]:
    """The peak that shares are shares of: a large product of random numbers, as zeros and ramps run faster."""
    import torch

    size = 8192 if scale.device == "cuda" else 128
    dtype = torch.bfloat16 if scale.dtype == "bfloat16" else torch.float32
    one, other = (torch.randn(size, size, device=scale.device).to(dtype) for _ in range(2))
    seconds = _seconds(scale, lambda: one @ other, repeats=30)
    yield Row("matmul peak", 2 * size**3 / seconds / 1e12, unit="TFLOP/s")
    source = torch.randn(size, size, 16, device=scale.device).to(dtype)
    target = torch.empty_like(source)
    seconds = _seconds(scale, lambda: target.copy_(source), repeats=10)
    yield Row("copy", 2 * source.nbytes / seconds / 1e12, unit="TB/s")


def training(scale: Scale) -> Iterator[Row]:
    """Steps of the real session: read-ahead, loss in chunks, clipping, fused AdamW; blocks compiled, then as one."""
    import torch

    from fledge.models import loss

    session = _session(scale, compile=scale.compiles)
    yield _trained("training, ours", scale, session.train_step, ">= 575000")
    flops = session.flops_per_token
    yield Row("FLOPs a token", flops, unit="FLOP")
    yield from _parts(scale, session.train_step)
    for microbatch in (scale.microbatch // 2, scale.microbatch * 2):
        session = _session(scale, compile=scale.compiles, microbatch=microbatch)
        yield _trained(f"training, ours, microbatch {microbatch}", scale, session.train_step)
    if scale.compiles:
        session = _session(scale)
        loss.compile_loss()
        session.model.run_blocks = torch.compile(session.model.run_blocks)
        yield _trained("training, ours, all blocks as one graph", scale, session.train_step)


def transformers(scale: Scale) -> Iterator[Row]:
    """transformers' GPT-2 in a plain loop: compiled, bfloat16 by autocast, fused AdamW, clipped."""
    import torch

    from bench import training as peers

    model = peers.transformers_gpt2(scale.vocab_size, scale.shape).to(scale.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step = peers.plain_step(model, model, optimizer, _random_batch(scale), scale.dtype, scale.compiles)
    yield _trained("training, transformers", scale, step)


def nanogpt(scale: Scale) -> Iterator[Row]:
    """nanoGPT's model and optimizer as its train.py has them for GPT-2: no biases, 50,304 tokens, TF32 allowed."""
    import torch

    from bench import training as peers

    folder = os.environ.get("FLEDGE_NANOGPT", "")
    if not (Path(folder) / "model.py").is_file():
        raise ConfigError(f"FLEDGE_NANOGPT={folder}: no model.py there; name nanoGPT's folder")
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    shape = {"n_layer": scale.shape["layers"], "n_head": scale.shape["heads"], "n_embd": scale.shape["width"]}
    model = GPT(
        GPTConfig(
            block_size=scale.shape["context"],
            vocab_size=-(-scale.vocab_size // 64) * 64,
            dropout=0.0,
            bias=False,
            **shape,
        )
    ).to(scale.device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), scale.device)
    step = peers.plain_step(
        *(model, lambda ids_BT, targets_BT: model(ids_BT, targets_BT)[1], optimizer),
        *(_random_batch(scale), scale.dtype, scale.compiles),
    )
    yield _trained("training, nanoGPT", scale, step, "ours >= 1.3 x")


def zero(scale: Scale) -> Iterator[Row]:
    """DeepSpeed's ZeRO 1 in one process: the same session with the other engine."""
    session = _session(scale, compile=scale.compiles, **{"engine.kind": "deepspeed", "engine.zero": 1})
    yield _trained("training, ours, ZeRO 1", scale, session.train_step, ">= 0.97 x plain")


def generation(scale: Scale) -> Iterator[Row]:
    """Sampling with bfloat16 weights against transformers' `generate`: the same weights, prompts and lengths."""
    import torch

    from bench import generation as bench
    from fledge.models import architecture

    made = architecture.find_config("gpt2").sized(vocab_size=scale.vocab_size, **scale.shape)
    model = architecture.build(made, seed=0).to(scale.device, torch.bfloat16).eval()
    prompt = min(32, scale.shape["context"] - scale.new_tokens)
    ids_BT = torch.randint(0, scale.vocab_size, (scale.rows, prompt))
    ours, peer = bench.both(model, bench.as_transformers(model).to(scale.device), ids_BT, scale.new_tokens)
    amount = scale.rows * scale.new_tokens
    ours_s = _seconds(scale, ours)
    yield Row("generation, ours", amount / ours_s, unit="tokens/s")
    peer_s = _seconds(scale, peer)
    name = f"generation, {scale.rows} rows"
    yield Row(name, amount / ours_s, amount / peer_s, peer_s / ours_s, ">= 10", "tokens/s")


def ppo(scale: Scale) -> Iterator[Row]:
    """Episodes a second of `rlhf ppo` against a plain loop around transformers' `generate`."""
    from bench import ppo as bench
    from bench.plain_ppo import PlainPPO
    from fledge import commands, config
    from fledge.metrics_log import read_metrics
    from rlhf.config import PpoConfig

    new, episodes = min(64, scale.policy["context"] // 2), scale.episodes
    with tempfile.TemporaryDirectory() as scratch:
        task = bench.random_task(Path(scratch), scale.policy)
        values = {
            **{"run.device": scale.device, "run.dtype": scale.dtype, "run.max_steps": 2 + scale.steps},
            **{"run.threads": 1 if scale.device == "cpu" else 0},
            **{"run.log_every": 1, "run.checkpoint_every": 10**6, "validation.every": 10**6},
            **{"validation.prompts": 2, "validation.at_end": 2, "sampling.max_new_tokens": new},
            **{"rollout.episodes": episodes, "rollout.at_once": episodes, "batch.epochs": 4},
            **{"batch.minibatch": episodes // 4, "batch.microbatch": episodes // 4, "clip.stop_kl": 0.0},
            **{"optim.critic_warmup": 0, "scores.unfinished_penalty": 0.0},
        }
        settings = PpoConfig(model=task.model, reward=task.reward, prompts=[task.prompts])
        out = Path(scratch) / "ppo"
        commands.execute(config.with_values(settings, values), out)
        elapsed = [line["elapsed_s"] for line in read_metrics(out) if "elapsed_s" in line]
        # The first steps warm up; the last one holds the check at the end.
        timed = [later - before for before, later in itertools.pairwise(elapsed[:-1])]
        ours = episodes / statistics.median(timed)
        yield Row("PPO, ours", ours, unit="episodes/s")
        peer = PlainPPO(task, scale.device, scale.dtype, new, episodes)
        theirs = episodes / _seconds(scale, peer.step, repeats=2)
        yield Row("PPO", ours, theirs, ours / theirs, ">= 4", "episodes/s")


def memory(scale: Scale) -> Iterator[Row]:
    """What a step needs at most, against what `fledge plan` predicts."""
    import torch

    from pretrain import memory as predicted

    for microbatch in (scale.microbatch // 2, scale.microbatch):
        session = _session(scale, microbatch=microbatch)
        told = predicted.predict(session.config, session.model, microbatch=microbatch).total / 2**30
        if scale.device != "cuda":
            yield Row(f"memory, microbatch {microbatch}, predicted", told, unit="GiB")
            continue
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            session.train_step()
        found = torch.cuda.max_memory_allocated() / 2**30
        name = f"memory, microbatch {microbatch}: predicted, measured"
        yield Row(name, told, found, told / found, "0.9 to 1.1", "GiB")
        del session  # before the next one is made
        gc.collect()


PARTS: dict[str, tuple[Callable[[Scale], Iterable[Row]], int]] = {  # and the seconds that each may take
    "matmul": (matmul, 40),
    "training": (training, 200),
    "generation": (generation, 80),
    "ppo": (ppo, 110),
    "transformers": (transformers, 100),
    "zero": (zero, 90),
    "memory": (memory, 50),
    "nanogpt": (nanogpt, 80),
}


def _session(scale: Scale, **values: Any) -> Any:
    """The real session of `pretrain train` over random tokens."""
    import numpy as np

    from fledge import config
    from fledge.models import architecture
    from pretrain.config import TrainConfig
    from pretrain.session import Session
    from pretrain.sizing import VOCABULARY_MULTIPLE

    class RandomTokens:
        num_tokens = 200 * scale.sequences * scale.shape["context"]

        def __init__(self) -> None:
            draw = np.random.default_rng(0).integers
            self._ids = draw(0, scale.vocab_size, self.num_tokens, dtype=np.uint16)

        def read(self, start: int, count: int) -> np.ndarray:
            return self._ids[start : start + count]

    microbatch = values.pop("microbatch", scale.microbatch)
    values = {
        **{"model.architecture": "gpt2", "optim.optimizer": "adamw"},
        **{f"model.{name}": value for name, value in scale.shape.items()},
        **{"batch.sequences": max(scale.sequences, microbatch), "batch.microbatch": microbatch},
        **{"run.device": scale.device, "run.dtype": scale.dtype, "engine.kind": "torch"},
        **{"run.threads": 1},  # of the host; a session sets none
        **values,
    }
    settings = config.with_values(TrainConfig(data="-"), values)
    made = architecture.find_config("gpt2").sized(vocab_size=scale.vocab_size, **scale.shape)
    model = architecture.build(made, settings.run.seed, VOCABULARY_MULTIPLE)
    return Session(settings, model, RandomTokens())


def _random_batch(scale: Scale) -> list[tuple[Any, Any]]:
    """A step's microbatches of random ids and targets, on the device already."""
    import torch

    ids_BS = torch.randint(0, scale.vocab_size, (scale.sequences, scale.shape["context"] + 1))
    parts = ids_BS.to(scale.device).split(scale.microbatch)
    return [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in parts]


def _trained(name: str, scale: Scale, step: Callable[[], object], goal: str = "") -> Row:
    seconds = _seconds(scale, step, repeats=scale.steps, warm_ups=2)
    return Row(name, scale.sequences * scale.shape["context"] / seconds, goal=goal, unit="tokens/s")


def _seconds(scale: Scale, work: Callable[[], object], repeats: int = 3, warm_ups: int = 1) -> float:
    """Median seconds of some work, waited for on the device."""
    import torch

    times = []
    for _ in range(warm_ups + repeats):
        started = time.perf_counter()
        work()
        if scale.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[warm_ups:])


def _parts(scale: Scale, step: Callable[[], object]) -> Iterator[Row]:
    from bench import training as peers

    for part, share in peers.parts(step, scale.device).items():
        yield Row(f"a step's time: {part}", share, unit="share")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder for gpu.json and gpu.md")
@click.option("--tiny", is_flag=True, help="on a CPU, in seconds; the numbers mean nothing")
@click.option("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
@click.option("--part", hidden=True)
def main(out: Path, tiny: bool, only: str, part: str | None) -> None:
    """Run the parts one by one; see the module's docstring."""
    scale = TINY if tiny else H200
    if part:  # a process of its own
        for row in PARTS[part][0](scale):
            print("row " + json.dumps(asdict(row)), flush=True)
        return
    names = only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise DataError(f"--only {unknown[0]}: no such part; there are {', '.join(PARTS)}")
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    errors: dict[str, str] = {}
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    for name in names:
        left = TOTAL_S - (time.perf_counter() - started)
        console.note(f"[{name}] at most {min(left, PARTS[name][1]):.0f} s")
        began = time.perf_counter()
        try:
            for row in PARTS[name][0](scale) if tiny else _apart(name, out, min(left, PARTS[name][1])):
                rows.append(row)
                console.note(f"{row.name}: {row.ours:.4g} {row.unit}")
        except Exception as error:  # a part's failure must not cost the others
            errors[name] = f"{type(error).__name__}: {error}"
            console.warn(f"{name}: {errors[name]}")
        seconds[name] = round(time.perf_counter() - began, 1)
        _write(out, scale, rows, errors, seconds)
    console.result((out / "gpu.md").read_text(encoding="utf-8"))


def _apart(name: str, out: Path, limit_s: float) -> Iterator[Row]:
    """The rows of a part that runs as a process; also those before it failed or was stopped."""
    if limit_s < 10:
        raise TimeoutError("no time was left")
    command = [sys.executable, "-m", "bench.gpu", "--out", str(out), "--part", name]
    log, code = out / f"{name}.log", None
    with log.open("w", encoding="utf-8") as file, contextlib.suppress(subprocess.TimeoutExpired):
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=limit_s, check=False).returncode
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    yield from (Row(**json.loads(line[4:])) for line in lines if line.startswith('row {"'))
    if code is None:
        raise RuntimeError(f"stopped after {limit_s:.0f} s")
    if code:
        raise RuntimeError(next((line for line in reversed(lines) if line and not line.startswith("row ")), ""))
    log.unlink()


def _derived(rows: list[Row]) -> Iterator[Row]:
    """What follows from several parts."""
    found = {row.name: row.ours for row in rows}
    ours, flops = found.get("training, ours"), found.get("FLOPs a token")
    if ours and flops:
        reached = ours * flops / 1e12
        yield Row("training, share of the nominal 989 TFLOP/s", reached / 989, goal=">= 0.5", unit="share")
        if peak := found.get("matmul peak"):
            yield Row("training, share of the measured peak", reached / peak, unit="share")
    for name, goal in (("transformers", ""), ("nanoGPT", ">= 1.3"), ("ours, ZeRO 1", "<= 1.03")):
        if ours and (peer := found.get(f"training, {name}")):
            yield Row(f"training against {name}", ours, peer, ours / peer, goal, "tokens/s")


def _write(out: Path, scale: Scale, rows: list[Row], errors: dict[str, str], seconds: dict[str, float]) -> None:
    import torch

    every = [*rows, *_derived(rows)]
    machine = torch.cuda.get_device_name() if scale.device == "cuda" and torch.cuda.is_available() else "CPU"
    content = {
        **{"machine": machine, "scale": asdict(scale), "versions": lineage.versions()},
        **{"rows": [asdict(row) for row in every], "errors": errors, "seconds": seconds},
    }
    (out / "gpu.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    cells = [
        [r.name, *("" if v is None else f"{v:.4g}" for v in (r.ours, r.peer, r.ratio)), r.goal, r.unit] for r in every
    ]
    table = console.table(cells, ["benchmark", "measured", "peer", "ratio", "goal", "unit"])
    failed = "".join(f"\n{name}: {text}" for name, text in errors.items())
    title = f"{machine}, {json.dumps(scale.shape)}; goals, none of them measured on a GPU before this run"
    (out / "gpu.md").write_text(f"{title}\n\n{table}\n{failed}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
