"""Training speed against transformers' GPT-2 in a plain loop: same shape, batch and precision (float32)."""

from typing import Any

from bench.measure import Row, interleaved
from fledge.engine import TorchEngine
from fledge.models import architecture

SHAPES = {
    "4 layers, 128 wide, 12 x 64 tokens": (
        {"layers": 4, "width": 128, "heads": 4, "context": 64},
        128,
        12,
        20,
    ),
    "6 layers, 320 wide, 8 x 256 tokens": (
        {"layers": 6, "width": 320, "heads": 5, "context": 256},
        8192,
        8,
        2,
    ),
}


def run() -> list[Row]:
    """Tokens a second of both at each shape, interleaved."""
    return [_compare(name, *settings) for name, settings in SHAPES.items()]


def _compare(name: str, shape: dict[str, int], vocab_size: int, rows: int, steps: int) -> Row:
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
    engine = TorchEngine(model, optimizers[0], 1.0, "cpu", torch.float32)
    ids_BS = torch.randint(0, vocab_size, (rows, shape["context"] + 1))
    ids_BT, targets_BT = ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous()

    def ours() -> None:
        for _ in range(steps):
            engine.step([(ids_BT, targets_BT)])

    def theirs() -> None:
        output: Any
        for _ in range(steps):
            output = peer(ids_BT)
            torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), targets_BT.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizers[1].step()
            optimizers[1].zero_grad()

    ours_s, peer_s, ours_cpu, peer_cpu = interleaved(ours, theirs)
    tokens = steps * ids_BT.numel()
    title = f"training GPT-2, {name}"
    return Row(
        title, tokens / ours_s, tokens / peer_s, peer_s / ours_s, "> 1", "tokens/s", (ours_cpu, peer_cpu)
    )
