"""Preparation against raw tiktoken on the same text and cores; `FLEDGE_TEXT` names it, else stories of the village."""

import json
import os
import tempfile
from pathlib import Path

from bench.measure import Row, rates
from fledge import commands
from fledge.data import sources
from fledge.data.text import TextReader
from fledge.device import usable_cores
from fledge.tokens import TextTokenizer
from pretrain.config import PrepareConfig
from tokenizer.bulk import TiktokenEncoder
from tokenizer.config import TrainConfig

VILLAGE = "village:hamlet#20000"  # 13 MB


def run() -> list[Row]:
    """Megabytes of text a second: `pretrain prepare` as a whole, and tiktoken's batch encoding alone."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        source = os.environ.get("FLEDGE_TEXT") or _village(folder / "village.jsonl")
        tokenizer_run = folder / "tokenizer"
        commands.execute(TrainConfig(input=[source], vocab_size=2048), tokenizer_run)
        tokenizer = TextTokenizer.from_folder(tokenizer_run)
        texts = [document.text for document in TextReader(sources.expand([source])).documents()]
        encoding = TiktokenEncoder(tokenizer).encoding
        threads = usable_cores()
        runs = iter(range(100))

        def ours() -> None:
            settings = PrepareConfig(input=[source], tokenizer=str(tokenizer_run), threads=threads)
            commands.execute(settings, folder / f"shards-{next(runs)}")

        def peer() -> None:
            encoding.encode_ordinary_batch(texts, num_threads=threads)

        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        name = "prepare against tiktoken's batch encoding"
        return [rates(name, ours, peer, megabytes, "MB/s", ">= 0.8", repeats=3)]


def _village(path: Path) -> str:
    """Stories in a file, as telling them takes longer than preparing them."""
    stories = TextReader(sources.expand([VILLAGE])).documents()
    path.write_text("".join(json.dumps({"text": story.text}) + "\n" for story in stories), encoding="utf-8")
    return str(path)
