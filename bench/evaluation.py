"""Minimal pairs and perplexity, a second of CPU time, against lm-evaluation-harness and a plain transformers loop.

`FLEDGE_MODEL` names a run or model folder, `FLEDGE_BLIMP` a folder of BLiMP's sets; needs `fledge-lm[lm-eval]`.
"""

import os
from typing import Any

from bench.measure import Row, rates
from eval import harness
from eval.subject import Subject
from eval.token_tree import Tokens
from fledge.errors import DataError

PAIRS = 10  # of each set
PEER_BATCH = 32  # lm-evaluation-harness was slower with 8
WINDOWS = 64


def run() -> list[Row]:
    """Pairs and tokens a second of ours (float32 and bfloat16) and the peers', interleaved."""
    model, blimp = (os.environ.get(name, "") for name in ("FLEDGE_MODEL", "FLEDGE_BLIMP"))
    if not model or not blimp:
        raise DataError("name a model in FLEDGE_MODEL and a folder of BLiMP in FLEDGE_BLIMP; this compares on both")
    return [*_pairs(model, blimp), _text(model)]


def _pairs(model: str, blimp: str) -> list[Row]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, task = harness.find_task("blimp")
    kind: Any = harness.find_kind(task.kind, "blimp")
    items = harness.read_items(task.model_copy(update={"data": [blimp]}), kind, PAIRS)
    path = Subject.open(model).path
    peer = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(path),
        tokenizer=AutoTokenizer.from_pretrained(path),
        batch_size=PEER_BATCH,
        device="cpu",
    )
    asked = [
        Instance("loglikelihood", {}, (request.context, request.continuation), number)
        for item in items
        for number, request in enumerate(item.requests)
    ]
    rows = []
    for dtype, goal in (("float32", ">= 2"), ("bfloat16", ">= 4")):
        subject = Subject.open(model, "cpu", dtype)
        row = rates(
            f"minimal pairs, {dtype}, lm-evaluation-harness",
            lambda scorer=subject.scorer: scorer.answer_items(items, kind.margin),
            lambda: peer.loglikelihood(asked, disable_tqdm=True),
            *(len(items), "pairs/CPU-s", goal),
            repeats=3,
        )
        rows.append(row)
    return rows


def _text(model: str) -> Row:
    import torch
    from transformers import AutoModelForCausalLM

    subject = Subject.open(model, "cpu")
    peer = AutoModelForCausalLM.from_pretrained(subject.path)
    context, vocabulary = subject.scorer.context, subject.tokenizer.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids_WT = torch.randint(5, vocabulary, (WINDOWS, context), generator=generator)
    windows = [[Tokens(ids_T.tolist(), 1)] for ids_T in ids_WT]

    @torch.no_grad()
    def plain() -> None:
        for ids_BT in ids_WT.split(8):
            logits_BTV = peer(ids_BT).logits[:, :-1]
            torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())

    name, amount = "perplexity, float32, plain transformers loop", ids_WT.numel()
    return rates(name, lambda: subject.scorer.score(windows), plain, amount, "tokens/CPU-s", ">= 2", repeats=3)
