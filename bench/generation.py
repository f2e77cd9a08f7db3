"""Sampling speed against transformers' `generate`: 32 prompts of 32 tokens, 128 new, 12 M parameters, float32."""

import tempfile

from bench.measure import Row, interleaved
from fledge.models import architecture, folder, generation

ROWS, PROMPT, NEW = 32, 32, 128


def run() -> list[Row]:
    """Tokens a second of both, interleaved."""
    import torch
    from transformers import AutoModelForCausalLM

    shape = architecture.find_config("qwen3").sized(
        vocab_size=8192, context=256, layers=6, width=320, heads=5
    )
    model = architecture.build(shape, seed=0).eval()
    with tempfile.TemporaryDirectory() as path:
        folder.save_model(model, path)
        peer = AutoModelForCausalLM.from_pretrained(path)
    ids_BT = torch.randint(0, 8192, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    sampling = generation.Sampling(max_new_tokens=NEW)
    settings = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": True,
        "top_k": 0,
        "pad_token_id": 0,
    }
    ours_s, peer_s, ours_cpu, peer_cpu = interleaved(
        lambda: generation.generate(model, ids_BT.tolist(), sampling),
        lambda: peer.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **settings),
        repeats=3,
    )
    tokens = ROWS * NEW
    return [
        Row(
            "generation",
            tokens / ours_s,
            tokens / peer_s,
            peer_s / ours_s,
            ">= 2",
            "tokens/s",
            (ours_cpu, peer_cpu),
        )
    ]
