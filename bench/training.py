"""Training speed against transformers' GPT-2 in a plain loop: same shape, batch, precision and optimizer."""

from collections.abc import Callable
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
# Kernels by part, of the names that cuBLAS, CUTLASS, FlashAttention, torch and its compiler give them.
GPU_PARTS = {
    "attention": ("flash", "fmha", "attention"),
    "optimizer": ("adam", "multi_tensor", "foreach", "lpnorm"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
    "compiled: norms, activations, softmax": ("triton",),
    "copies": ("memcpy", "memset", "copy"),
}


def run() -> list[Row]:
    """Tokens a second of both at each shape, interleaved; the share of the matmul peak beside it."""
    return [row for name, settings in SHAPES.items() for row in _compare(name, *settings)]


def _compare(
    name: str, shape: dict[str, int], vocab_size: int, rows: int, dtype: str, steps: int, repeats: int, goal: str
) -> list[Row]:
    import torch

    config = architecture.find_config("gpt2").sized(vocab_size=vocab_size, **shape)
    model = architecture.build(config, seed=0)
    peer = transformers_gpt2(vocab_size, shape)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for m in (model, peer)]
    engine = TorchEngine(model, optimizers[0], 1.0, "cpu", device.torch_dtype(dtype))
    ids_BS = torch.randint(0, vocab_size, (rows, shape["context"] + 1))
    ids_BT, targets_BT = ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous()

    def ours() -> None:
        for _ in range(steps):
            engine.step([(ids_BT, targets_BT)])

    plain = plain_step(peer, peer, optimizers[1], [(ids_BT, targets_BT)], dtype)

    def theirs() -> None:
        for _ in range(steps):
            plain()

    row = rates(f"training GPT-2, {name}", ours, theirs, steps * ids_BT.numel(), "tokens/s", goal, repeats)
    told = ", ".join(f"{part} {share:.0%}" for part, share in parts(ours, "cpu").items())
    console.note(f"{name}: {told}")
    # Of CPU time, so that the machine's load does not count.
    flops = steps * ids_BT.numel() * model.flops_per_token(shape["context"])
    peak = device.matmul_peak("cpu", dtype) / torch.get_num_threads()
    shares = [flops / seconds / peak for seconds in row.cpu_s or ()]
    return [row, Row(f"share of the matmul peak, {name}", *shares, shares[0] / shares[1], unit="share")]


def transformers_gpt2(vocab_size: int, shape: dict[str, int]) -> Any:
    """transformers' GPT-2 of a shape, with random weights and without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
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


def plain_step(
    model: Any,
    forward: Callable[..., Any],
    optimizer: Any,
    microbatches: list[tuple[Any, Any]],
    dtype: str,
    compiles: bool = False,
) -> Callable[[], None]:
    """A step as plain loops have it: autocast, cross-entropy over all logits, clipping to 1.

    Args:
        forward: from ids and targets to the loss; or the model itself, then from its logits.
    """
    import torch

    def loss_of(ids_BT: Any, targets_BT: Any) -> Any:
        if forward is not model:
            return forward(ids_BT, targets_BT)
        logits_BTV = model(ids_BT).logits
        return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    worked_out = torch.compile(loss_of) if compiles else loss_of
    kind = microbatches[0][0].device.type

    def step() -> None:
        for ids_BT, targets_BT in microbatches:
            with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = worked_out(ids_BT, targets_BT)
            (loss / len(microbatches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def parts(work: Callable[[], object], device: str) -> dict[str, float]:
    """The share of a device's time by part, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    is_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiled:
        work()
    names = GPU_PARTS if is_gpu else PARTS
    total, spent = 0.0, dict.fromkeys(names, 0.0)
    for event in profiled.key_averages():
        used = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        total += used
        part = next((p for p, some in names.items() if any(n in event.key.lower() for n in some)), None)
        if part:
            spent[part] += used
    total = total or 1.0
    return {part: time / total for part, time in spent.items()} | {"rest": 1 - sum(spent.values()) / total}
