"""`fledge tokenizer compare`: tokenizers side by side on the same text."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from fledge import console
from fledge.data import sources as src
from fledge.data.text import Document, TextReader
from fledge.tokens import TextTokenizer
from tokenizer.bulk import BulkEncoder, bulk_encoder
from tokenizer.config import CompareConfig

_SAMPLE_CHARACTERS = 1 << 18
_SHOWN = 20  # sources with a line of their own


@dataclass
class _Contender:
    name: str
    tokenizer: TextTokenizer
    encoder: BulkEncoder
    tokens: dict[str, int] = field(default_factory=dict)  # by source
    not_lossless: list[str] = field(default_factory=list)  # where a document did not come back
    is_used: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


def run(config: CompareConfig) -> dict[str, Any]:
    """Print bytes per token on every source, round trips and unused tokens of each tokenizer."""
    sources = src.expand(config.input)
    names = list(dict.fromkeys(config.tokenizers))
    tokenizers = [TextTokenizer.from_folder(name) for name in names]
    contenders: list[_Contender] = []
    num_bytes: dict[str, int] = {}
    reader = TextReader(sources, config.text_field, config.html, config.max_bad_share)
    with console.progress("encoding", src.total_size_bytes(sources), "B") as progress:
        for document in reader.documents():
            contenders = contenders or _contenders(names, tokenizers, document.text)
            num_bytes[document.source] = num_bytes.get(document.source, 0) + document.num_bytes
            for contender in contenders:
                _measure(contender, document)
            progress.reach(reader.size_bytes_done)
    return _report(contenders, num_bytes)


def _contenders(names: list[str], tokenizers: list[TextTokenizer], text: str) -> list[_Contender]:
    sample = [text[:_SAMPLE_CHARACTERS]]
    return [
        _Contender(
            name,
            tokenizer,
            bulk_encoder(tokenizer, "auto", sample)[0],
            is_used=np.zeros(tokenizer.vocab_size, dtype=bool),
        )
        for name, tokenizer in zip(names, tokenizers, strict=True)
    ]


def _measure(contender: _Contender, document: Document) -> None:
    (ids,) = contender.encoder.encode([document.text])
    contender.tokens[document.source] = contender.tokens.get(document.source, 0) + len(ids)
    contender.is_used[ids] = True
    if contender.tokenizer.decode(ids.tolist()) != document.text:
        contender.not_lossless.append(f"{document.source}:{document.position}")


def _report(contenders: list[_Contender], num_bytes: dict[str, int]) -> dict[str, Any]:
    """Print the tables and give the same as values."""
    total = sum(num_bytes.values())
    rows = [
        [source, f"{size:,}", *(f"{size / max(1, c.tokens[source]):.3f}" for c in contenders)]
        for source, size in islice(num_bytes.items(), _SHOWN)
    ]
    results = {c.name: _values(c, total) for c in contenders}
    rows.append(["all", f"{total:,}", *(f"{v['bytes_per_token']:.3f}" for v in results.values())])
    console.result("Bytes per token (more is better)\n")
    console.result(console.table(rows, ["source", "bytes", *results]))
    if len(num_bytes) > _SHOWN:
        console.result(f"The first {_SHOWN} of {len(num_bytes)} sources are shown.")
    console.result("")
    facts = [
        [name, f"{v['vocab_size']:,}", f"{v['unused']:,}", f"{v['unused_share']:.1%}", _round_trip(v["not_lossless"])]
        for name, v in results.items()
    ]
    console.result(console.table(facts, ["tokenizer", "vocabulary", "unused", "share", "round trip"]))
    return {"bytes": total, "tokenizers": results}


def _values(contender: _Contender, num_bytes: int) -> dict[str, Any]:
    special = list(contender.tokenizer.special_ids.values())
    unused = int((~contender.is_used).sum() - (~contender.is_used[special]).sum())
    ordinary = contender.tokenizer.vocab_size - len(special)
    tokens = sum(contender.tokens.values())
    return {
        "vocab_size": contender.tokenizer.vocab_size,
        "tokens": tokens,
        "bytes_per_token": num_bytes / max(1, tokens),
        "unused": unused,
        "unused_share": unused / max(1, ordinary),
        "not_lossless": contender.not_lossless,
    }


def _round_trip(failures: list[str]) -> str:
    if not failures:
        return "exact on every document"
    return f"{len(failures)} documents differ, first {failures[0]}"
