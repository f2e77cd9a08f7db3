"""CPU-seconds to a given loss on tinyshakespeare, start-up included, against nanoGPT's CPU recipe.

`FLEDGE_SHAKESPEARE` names the text (1,115,394 bytes). The peer is that recipe (4 layers, 128 wide, 64 characters,
batch 12, 2,000 steps, AdamW, cosine) on transformers' GPT-2 in a plain loop, its start-up not counted.
"""

import json
import math
import os
import tempfile
import time
from pathlib import Path

from bench.measure import Row, process
from bench.training import transformers_gpt2
from fledge import console
from fledge.errors import DataError

STEPS, BATCH, CONTEXT = 2000, 12, 64
GOALS = {"shakespeare": "<= 45 CPU-s to 2.72", "shakespeare-long": "<= 272 CPU-s to 2.35"}


def run() -> list[Row]:
    """CPU-seconds of both recipes, and the bits per byte they end at."""
    text = Path(os.environ.get("FLEDGE_SHAKESPEARE", "input.txt"))
    if not text.is_file():
        raise DataError(f"{text}: no such file; name tinyshakespeare's input.txt in FLEDGE_SHAKESPEARE")
    peer_s, peer_bits = _peer(text)
    console.note(f"GPT-2 by characters: {peer_bits:.4f} bits per byte after {peer_s:.0f} CPU-seconds")
    rows = []
    for variant, goal in GOALS.items():
        ours_s, ours_bits = _ours(text, variant)
        console.note(f"{variant}: {ours_bits:.4f} bits per byte after {ours_s:.0f} CPU-seconds")
        rows += [
            Row(f"{variant}, CPU time", ours_s, peer_s, peer_s / ours_s, goal, "CPU-s", (ours_s, peer_s)),
            Row(f"{variant}, loss", ours_bits, peer_bits, peer_bits / ours_bits, unit="bits/byte"),
        ]
    return rows


def _ours(text: Path, variant: str) -> tuple[float, float]:
    """CPU-seconds (user and system) of the three commands as processes, and the final bits per byte."""
    cpu_s = 0.0
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        commands = [
            ["tokenizer", "train", "--input", str(text), "--out", str(folder / "tokenizer")],
            [
                *("pretrain", "prepare", "--input", str(text)),
                *("--tokenizer", str(folder / "tokenizer"), "--out", str(folder / "shards")),
            ],
            ["pretrain", "train", "--data", str(folder / "shards"), "--out", str(folder / "base"), "--json"],
        ]
        for command, config in zip(commands, ("shakespeare", "shakespeare", variant), strict=True):
            used_s, written = process("fledge", *command, "--config", config)
            cpu_s += used_s
    return cpu_s, json.loads(written.splitlines()[-1])["validation_bits_per_byte"]


def _peer(text: Path) -> tuple[float, float]:
    import torch

    characters = text.read_text(encoding="utf-8")
    known = {character: number for number, character in enumerate(sorted(set(characters)))}
    ids = torch.tensor([known[character] for character in characters])
    cut = int(0.9 * len(ids))
    train, held_out = ids[:cut], ids[cut:]
    torch.manual_seed(1337)
    model = transformers_gpt2(len(known), {"context": CONTEXT, "layers": 4, "width": 128, "heads": 4})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    started = time.process_time()
    with console.progress("nanoGPT's recipe", STEPS, "steps") as bar:
        for step in range(STEPS):
            share = min(1, (step + 1) / 100) if step < 100 else 0.5 * (1 + math.cos(math.pi * step / STEPS))
            for group in optimizer.param_groups:
                group["lr"] = 1e-4 + 9e-4 * share
            starts = torch.randint(len(train) - CONTEXT - 1, (BATCH,))
            ids_BS = torch.stack([train[start : start + CONTEXT + 1] for start in starts])
            logits_BTV = model(ids_BS[:, :-1]).logits
            torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BS[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.advance()
    used = time.process_time() - started
    windows_BS = held_out[: (len(held_out) - 1) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    following_BT = held_out[1 : windows_BS.numel() + 1].view(-1, CONTEXT)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(windows_BS).logits.flatten(0, 1), following_BT.flatten())
    return used, float(losses) / math.log(2)  # one character is one byte here
