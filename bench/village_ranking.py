"""Does the village rank pretraining recipes as real text does? Spearman correlation over recipes.

Needs books or other plain text: `FLEDGE_TEXT=FILE|GLOB python -m bench village_ranking` (about 20 minutes on two
cores). Each recipe trains on both corpora with the same arithmetic (so the machine's load moves nothing), one thread
a run, as many runs as cores at once.
"""

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Row, process
from fledge import console
from fledge.device import usable_cores
from fledge.errors import DataError
from fledge.models.architecture import build, find_config

FLOPS = float(os.environ.get("FLEDGE_FLOPS", "4e12"))  # a minute or so on one core
CONTEXT, SEQUENCES, HEAD_WIDTH = 256, 8, 32
VOCABULARIES = (512, 1024, 2048)


@dataclass(frozen=True)
class Recipe:
    """A shape, and options of `pretrain train` besides."""

    name: str
    architecture: str
    layers: int
    width: int
    options: tuple[str, ...] = ()
    vocab_size: int = 1024

    @property
    def steps(self) -> int:
        """Optimizer steps that cost the common number of FLOPs."""
        shape = find_config(self.architecture).sized(
            vocab_size=self.vocab_size,
            context=CONTEXT,
            layers=self.layers,
            width=self.width,
            heads=self.width // HEAD_WIDTH,
        )
        return round(FLOPS / (build(shape, seed=None).flops_per_token(CONTEXT) * SEQUENCES * CONTEXT))


ADAMW = "--optim.optimizer=adamw"
RECIPES = [
    Recipe("qwen3 4x128 muon", "qwen3", 4, 128),
    Recipe("qwen3 4x128 muon, 512 tokens", "qwen3", 4, 128, vocab_size=512),
    Recipe("qwen3 4x128 muon, 2048 tokens", "qwen3", 4, 128, vocab_size=2048),
    Recipe("qwen3 4x128 muon 0.002", "qwen3", 4, 128, ("--optim.muon-learning-rate=0.002",)),
    Recipe("qwen3 4x128 adamw 0.01", "qwen3", 4, 128, (ADAMW, "--optim.learning-rate=0.01")),
    Recipe("qwen3 4x128 adamw 0.001", "qwen3", 4, 128, (ADAMW, "--optim.learning-rate=0.001")),
    Recipe("qwen3 4x128 adamw 0.0001", "qwen3", 4, 128, (ADAMW, "--optim.learning-rate=0.0001")),
    Recipe("nanochat 4x128 muon", "nanochat", 4, 128),
    Recipe("gpt2 4x128 muon", "gpt2", 4, 128),
    Recipe("gpt2 4x128 adamw 0.001", "gpt2", 4, 128, (ADAMW, "--optim.learning-rate=0.001")),
    Recipe("qwen3 2x64 muon", "qwen3", 2, 64),
    Recipe("qwen3 1x128 muon", "qwen3", 1, 128),
    Recipe("qwen3 8x256 muon", "qwen3", 8, 256),
]


def run() -> list[Row]:
    """Bits per byte of every recipe on both corpora, and the rank correlation."""
    from scipy.stats import spearmanr

    text = os.environ.get("FLEDGE_TEXT")
    if not text:
        raise DataError("set FLEDGE_TEXT to a text file or glob of real text (books)")
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        for corpus, source in (("village", "village:hamlet#20000"), ("text", text)):
            for size in VOCABULARIES:
                _fledge("tokenizer", "train", "--config=tiny", f"--input={source}", f"--vocab-size={size}",
                        f"--out={folder}/{corpus}-tok-{size}")  # fmt: skip
                _fledge("pretrain", "prepare", f"--input={source}", f"--tokenizer={folder}/{corpus}-tok-{size}",
                        f"--out={folder}/{corpus}-{size}")  # fmt: skip
        jobs = [(corpus, recipe) for recipe in RECIPES for corpus in ("village", "text")]
        with ThreadPoolExecutor(usable_cores()) as pool:
            scores = list(pool.map(lambda job: _train(folder, *job), jobs))
    village, real = scores[::2], scores[1::2]
    rows = [
        Row(recipe.name, ours, theirs, unit="bits/byte: village, text")
        for recipe, ours, theirs in zip(RECIPES, village, real, strict=True)
    ]
    correlation = float(spearmanr(village, real).statistic)
    return [*rows, Row("Spearman correlation of the two rankings", correlation, goal=">= 0.8")]


def _train(folder: Path, corpus: str, recipe: Recipe) -> float:
    """Bits per byte on the validation text after the common arithmetic."""
    out = folder / f"run-{corpus}-{recipe.name.replace(' ', '-')}"
    data = folder / f"{corpus}-{recipe.vocab_size}"
    result = _fledge("pretrain", "train", "--config=hamlet", f"--data={data}", f"--out={out}", "--run.threads=1",
                     "--samples.every=0", "--run.checkpoint-every=100000", f"--run.max-steps={recipe.steps}",
                     f"--model.architecture={recipe.architecture}", f"--model.layers={recipe.layers}",
                     f"--model.width={recipe.width}", f"--model.heads={recipe.width // HEAD_WIDTH}",
                     f"--model.context={CONTEXT}", f"--batch.sequences={SEQUENCES}", *recipe.options)  # fmt: skip
    console.note(f"{corpus}: {recipe.name}: {result['validation_bits_per_byte']:.4f} after {result['steps']} steps")
    return float(result["validation_bits_per_byte"])


def _fledge(*arguments: str) -> dict[str, float]:
    _, written = process("fledge", *arguments, "--json", OMP_NUM_THREADS="1")
    return dict(json.loads(written.splitlines()[-1]))
