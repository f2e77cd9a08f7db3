"""Training speed against transformers' GPT-2 in a plain loop: same shape, batch, precision and optimizer."""

import contextlib
from typing import Any

from bench.measure import Row, rates
from fledge import console, device
from fledge.engine import TorchEngine
from fledge.models import architecture

# name: shape, vocabulary, rows, number format, steps a repeat, repeats, goal
SHAPES: dict[str, tuple[dict[str, int], int, int, str, int, int, str]] = {
    "4 x 128, 12 x 64 tokens": (
        {"layers": 4, "width": 128, "heads": 4, "context": 64},
        *(128, 12, "float32", 20, 5, ">= 2"),
    ),
    "6 x 320, 8 x 256 tokens": (
        {"layers": 6, "width": 320, "heads": 5, "context": 256},
        *(8192, 8, "float32", 2, 3, "> 1"),
    ),
    "124M, 2 x 512 tokens": (
        {"layers": 12, "width": 768, "heads": 12, "context": 512},
        *(50257, 2, "float32", 1, 3, ">= 1.06"),
    ),
    "124M, 2 x 512 tokens, bfloat16": (
        {"layers": 12, "width": 768, "heads": 12, "context": 512},
        *(50257, 2, "bfloat16", 1, 3, ">= 1.06"),
    ),
}
# Operations by part; everything else is "rest".
PARTS = {
    "attention": ("scaled_dot_product", "bmm"),
    "products": ("::mm", "::addmm", "_linear_pointwise"),
    "optimizer": ("adamw", "_foreach"),
    "norms, activations, softmax": ("norm", "gelu", "softmax"),
    "copies": ("copy_", "fill_", "zero_"),
}


def run() -> list[Row]:
    """Tokens a second of both at each shape, interleaved; the share of the matmul peak beside it."""
    return [row for name, settings in SHAPES.items() for row in _compare(name, *settings)]


def _compare(
    name: str,
    shape: dict[str, int],
    vocab_size: int,
    rows: int,
    dtype: str,
    steps: int,
    repeats: int,
    goal: str,
) -> list[Row]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = architecture.find_config("gpt2").sized(vocab_size=vocab_size, **shape)
    model = architecture.build(config, seed=0)
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=shape["context"],
            n_embd=shape["width"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for m in (model, peer)]
    engine = TorchEngine(model, optimizers[0], 1.0, "cpu", device.torch_dtype(dtype))
    ids_BS = torch.randint(0, vocab_size, (rows, shape["context"] + 1))
    ids_BT, targets_BT = ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous()

    def ours() -> None:
        for _ in range(steps):
            engine.step([(ids_BT, targets_BT)])

    def theirs() -> None:
        output: Any
        is_bfloat16 = dtype == "bfloat16"
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16) if is_bfloat16 else contextlib.nullcontext():
                output = peer(ids_BT)
                loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets_BT.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizers[1].step()
            optimizers[1].zero_grad()

    row = rates(f"training GPT-2, {name}", ours, theirs, steps * ids_BT.numel(), "tokens/s", goal, repeats)
    console.note(f"{name}: {_parts(ours)}")
    # Of CPU time, so that the machine's load does not count.
    flops = steps * ids_BT.numel() * model.flops_per_token(shape["context"])
    peak = device.matmul_peak("cpu", dtype) / torch.get_num_threads()
    shares = [flops / seconds / peak for seconds in row.cpu_s or ()]
    return [row, Row(f"share of the matmul peak, {name}", *shares, shares[0] / shares[1], "", "share")]


def _parts(work: Any) -> str:
    """The share of CPU time by part, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    total, spent = 0.0, dict.fromkeys(PARTS, 0.0)
    for event in profiled.key_averages():
        total += event.self_cpu_time_total
        part = next((p for p, names in PARTS.items() if any(n in event.key for n in names)), None)
        if part:
            spent[part] += event.self_cpu_time_total
    shares = {part: time / total for part, time in spent.items()} | {"rest": 1 - sum(spent.values()) / total}
    return ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
