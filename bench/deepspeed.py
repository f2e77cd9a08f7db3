"""DeepSpeed's ZeRO 1 in one process against the plain engine: same model, batch and AdamW (float32)."""

import torch

from bench.measure import Row, rates
from fledge.deepspeed_engine import DeepSpeedEngine, Plan
from fledge.engine import TorchEngine
from fledge.models import architecture
from pretrain import optimizer
from pretrain.config import OptimConfig

# name: shape, vocabulary, rows, steps a repeat, goal
SHAPES = {
    "5M": ({"layers": 6, "width": 256, "heads": 4, "context": 256}, 1024, 8, 4, "> 0.9"),
    "124M": ({"layers": 12, "width": 768, "heads": 12, "context": 512}, 50257, 2, 1, "> 0.97"),
}


def run() -> list[Row]:
    """Tokens a second of both at each size, interleaved."""
    return [_compare(name, *settings) for name, settings in SHAPES.items()]


def _compare(name: str, shape: dict[str, int], vocab_size: int, rows: int, steps: int, goal: str) -> Row:
    config = architecture.find_config("gpt2").sized(vocab_size=vocab_size, **shape)
    adamw = OptimConfig(optimizer="adamw", learning_rate=1e-4)
    models = [architecture.build(config, seed=0) for _ in range(2)]
    optimizers = [optimizer.build(model, adamw) for model in models]
    plan = Plan(1, rows, rows, adamw.clip_norm, "cpu", torch.float32)
    zero = DeepSpeedEngine(models[0], optimizers[0], plan)
    plain = TorchEngine(models[1], optimizers[1], adamw.clip_norm, "cpu", torch.float32)
    ids_BS = torch.randint(0, vocab_size, (rows, shape["context"] + 1))
    batch = [(ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous())]

    def ours() -> None:
        for _ in range(steps):
            zero.step(batch)

    def theirs() -> None:
        for _ in range(steps):
            plain.step(batch)

    title = f"DeepSpeed ZeRO 1 against the plain engine, GPT-2 {name}"
    return rates(title, ours, theirs, steps * rows * shape["context"], "tokens/s", goal, repeats=3)
