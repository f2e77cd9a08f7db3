"""Sampling speed against transformers' `generate`: 32 prompts of 32 tokens, 128 new, 12 M parameters."""

import tempfile

from bench.measure import Row, rates
from fledge.models import architecture, folder, generation

ROWS, PROMPT, NEW = 32, 32, 128


def run() -> list[Row]:
    """Tokens a second of both in float32 and with bfloat16 weights; then what these change.

    The weights are random, so that the likeliest tokens are closer to each other than those of a trained model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    shape = architecture.find_config("qwen3").sized(
        vocab_size=8192, context=256, layers=6, width=320, heads=5
    )
    model, half = (
        architecture.build(shape, seed=0).eval(),
        architecture.build(shape, seed=0).eval().bfloat16(),
    )
    with tempfile.TemporaryDirectory() as path:
        folder.save_model(model, path)
        peers = [
            AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        ]
    ids_BT = torch.randint(0, 8192, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    prompts, sampling = ids_BT.tolist(), generation.Sampling(max_new_tokens=NEW)
    settings = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": True,
        "top_k": 0,
        "pad_token_id": 0,
    }
    rows = []
    for name, ours, peer, goal in (
        ("float32", model, peers[0], ">= 2"),
        ("bfloat16 weights", half, peers[1], ">= 3850 tokens/s"),
    ):
        rows.append(
            rates(
                f"generation, {name}",
                lambda ours=ours: generation.generate(ours, prompts, sampling),
                lambda peer=peer: peer.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **settings),
                ROWS * NEW,
                "tokens/s",
                goal,
                repeats=3,
            )
        )
    greedy = generation.generate(model, prompts, generation.Sampling(max_new_tokens=NEW, temperature=0))
    whole_BT = torch.tensor([[*prompt, *text.ids] for prompt, text in zip(prompts, greedy, strict=True)])
    with torch.no_grad():
        chosen_BT = half(whole_BT[:, :-1]).argmax(-1)
    changed = float((chosen_BT != whole_BT[:, 1:])[:, PROMPT - 1 :].float().mean())
    return [*rows, Row("greedy choices that bfloat16 weights change", changed, None, None, "", "share")]
