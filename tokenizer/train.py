"""`fledge tokenizer train`: text to a tokenizer folder."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fledge import console
from fledge.data import sources as src
from fledge.data.sources import Source
from fledge.data.text import TextReader, digest, pieces
from fledge.errors import DataError
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer, default_chat_template
from tokenizer.config import TrainConfig
from tokenizer.learn import learn

# The library holds a few hundred texts at once and slows down on long ones: 60 MB of books take 27 s and 485 MB
# as whole books, 10 s and 150 MB in pieces of this size.
_PIECE_CHARACTERS = 8192


@dataclass
class Sample:
    """What of the input the vocabulary was learned from."""

    share: float  # of the text, in small pieces chosen by a hash
    num_documents: int = 0
    num_bytes: int = 0
    rejects: Counter[str] = field(default_factory=Counter)


def run(config: TrainConfig, folder: RunFolder) -> dict[str, Any]:
    """Learn a tokenizer from a sample of the input and write it to `tokenizer/` of the run."""
    sources = src.expand(config.input)
    sample = Sample(share_to_take(sources, config.sample_megabytes * 1e6))
    # Where the size of one can't be told, each gives its part of the sample, one after the other.
    is_known = all(src.estimated_text_bytes(source) is not None for source in sources)
    together = [sources] if is_known else [[source] for source in sources]
    readers = [
        TextReader(
            part,
            config.text_field,
            config.html,
            config.max_bad_share,
            on_reject=lambda reject: sample.rejects.update([reject.reason]),
        )
        for part in together
    ]
    inner = learn(config.kind, _sampled(readers, sample, config), config.vocab_size)
    tokenizer = TextTokenizer(inner, chat_template=default_chat_template())
    with folder.publish("tokenizer") as part:
        tokenizer.save(part)
    folder.add_lineage(data=src.describe(sources), tokenizer=tokenizer.fingerprint)
    folder.write_summary(_summary(config, folder, tokenizer, sample))
    return {
        "tokenizer": str(folder.path / "tokenizer"),
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "documents": sample.num_documents,
        "bytes": sample.num_bytes,
        "rejected": sample.rejects.total(),
    }


def share_to_take(sources: Sequence[Source], limit_bytes: float) -> float:
    """The share of the text that makes a sample of about `limit_bytes`; 1 where the size can't be told."""
    sizes = [src.estimated_text_bytes(source) for source in sources]
    known = sum(size for size in sizes if size is not None)
    return min(1.0, limit_bytes / known) if known and None not in sizes else 1.0


def _sampled(readers: Sequence[TextReader], sample: Sample, config: TrainConfig) -> Iterator[str]:
    """The texts to learn from, in pieces.

    Raises:
        DataError: there is no text at all.
    """
    # A sample that the estimated size of compressed files made twice too large is full, too.
    limit = config.sample_megabytes * 1e6 * (2 if sample.share < 1 else 1)
    total = src.total_size_bytes([source for reader in readers for source in reader.sources])
    with console.progress("reading text", total, "B") as progress:
        numbers, before = count(), 0
        for place, reader in enumerate(readers):
            full = sample.num_bytes + (limit - sample.num_bytes) / (len(readers) - place)
            for document in reader.documents():
                if not document.text.strip():
                    continue
                sample.num_documents += document.is_last_part
                for piece in pieces(document.text, _PIECE_CHARACTERS):
                    key = digest(document.digest + next(numbers).to_bytes(8, "little"))
                    if int.from_bytes(key[:8], "little") < sample.share * 2**64:
                        sample.num_bytes += len(piece.encode())
                        yield piece
                progress.reach(before + reader.size_bytes_done)
                if sample.num_bytes >= full:
                    break
            before += reader.size_bytes_done
    if not sample.num_bytes:
        raise DataError(f"{', '.join(config.input)}: no text to learn from; every document is empty")
    console.note(
        f"learning a {config.kind} vocabulary of {config.vocab_size} from {sample.num_bytes / 1e6:.3g} MB of "
        f"{sample.num_documents} documents (share of the text: {sample.share:.3g})"
    )


def _summary(config: TrainConfig, folder: RunFolder, tokenizer: TextTokenizer, sample: Sample) -> str:
    longest = sorted(tokenizer.token_bytes(), key=len, reverse=True)[:10]
    rows = [
        ["kind", config.kind],
        ["vocabulary", str(tokenizer.vocab_size)],
        ["learned from", f"{sample.num_bytes / 1e6:.3g} MB of {sample.num_documents} documents"],
        ["share of the text taken", f"{sample.share:.3g}"],
        ["rejected rows", ", ".join(f"{n} {reason}" for reason, n in sample.rejects.most_common()) or "0"],
        ["longest tokens", " ".join(repr(token.decode("utf-8", "replace")) for token in longest)],
        ["special tokens", " ".join(f"{name}={number}" for name, number in tokenizer.special_ids.items())],
        ["fingerprint", tokenizer.fingerprint],
    ]
    lines = "\n".join(f"- {name}: {value}" for name, value in rows)
    return (
        f"# Tokenizer\n\n{lines}\n\nNext: fledge tokenizer show {folder.path} --text 'Hello', "
        f"fledge pretrain prepare --tokenizer {folder.path} --input ..."
    )
