"""Sampling speed against transformers' `generate`: 32 prompts of 32 tokens, 128 new, 12 M parameters."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.measure import Row, rates
from fledge.models import architecture, folder, generation
from fledge.models.architecture import LanguageModel

ROWS, PROMPT, NEW = 32, 32, 128


def run() -> list[Row]:
    """Tokens a second of both in float32 and with bfloat16 weights; then what these change.

    The weights are random, so that the likeliest tokens are closer to each other than those of a trained model.
    """
    shape = architecture.find_config("qwen3").sized(vocab_size=8192, context=256, layers=6, width=320, heads=5)
    model, half = (architecture.build(shape, seed=0).eval(), architecture.build(shape, seed=0).eval().bfloat16())
    peers = [as_transformers(made) for made in (model, half)]
    ids_BT = torch.randint(0, 8192, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    prompts = ids_BT.tolist()
    rows = []
    for name, ours, peer, goal in (
        ("float32", model, peers[0], ">= 2"),
        ("bfloat16 weights", half, peers[1], ">= 3850 tokens/s"),
    ):
        works = both(ours, peer, ids_BT, NEW)
        rows.append(rates(f"generation, {name}", *works, ROWS * NEW, "tokens/s", goal, repeats=3))
    greedy = generation.generate(model, prompts, generation.Sampling(max_new_tokens=NEW, temperature=0))
    whole_BT = torch.tensor([[*prompt, *text.ids] for prompt, text in zip(prompts, greedy, strict=True)])
    with torch.no_grad():
        chosen_BT = half(whole_BT[:, :-1]).argmax(-1)
    changed = float((chosen_BT != whole_BT[:, 1:])[:, PROMPT - 1 :].float().mean())
    return [*rows, Row("greedy choices that bfloat16 weights change", changed, unit="share")]


def as_transformers(model: LanguageModel) -> Any:
    """transformers' class with the weights of a model of ours, in their number format."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as path:
        folder.save_model(model, path)
        return AutoModelForCausalLM.from_pretrained(path, dtype=model.head_weight.dtype).eval()


def both(model: LanguageModel, peer: Any, ids_BT: Tensor, new: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What draws `new` tokens after each prompt, by us and by transformers."""
    sampling, prompts = generation.Sampling(max_new_tokens=new), ids_BT.tolist()
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    there_BT = ids_BT.to(peer.device)
    return (
        lambda: generation.generate(model, prompts, sampling),
        lambda: peer.generate(there_BT, attention_mask=torch.ones_like(there_BT), **settings),
    )
