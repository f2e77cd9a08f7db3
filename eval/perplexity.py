"""Bits per byte and perplexity of text: windows over documents, and over a stream of them.

Every token is scored once, each window as far back as its stride leaves room for. Document ends are context but are
never scored, and a byte counts where its token is scored, whether the token is valid UTF-8 by itself or not.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, inf, log

import numpy as np

from eval.baselines import compressed_bits_per_byte, ngram_bits_per_byte
from eval.harness import ItemScore, Scores
from eval.intervals import Estimate, ratio
from eval.items import Ratio
from eval.likelihood import Scorer
from eval.subject import Subject
from eval.token_tree import Tokens
from fledge import console
from fledge.data import sources
from fledge.data.text import Document as Part
from fledge.data.text import TextReader
from fledge.tokens import TextTokenizer

# Windows of a single text count as independent; documents do where there are enough of them for an interval.
ENOUGH_DOCUMENTS = 20
LARGEST = 700.0  # nats/token: beyond 709 exp is no float64


@dataclass(frozen=True)
class Document:
    """A text as ids, behind one end-of-text id."""

    name: str
    text: bytes  # UTF-8
    ids: np.ndarray  # int32
    bytes_N: np.ndarray  # int32, of the text, that each id stands for; all of them together
    is_kept: bool  # the ids tell the text

    @classmethod
    def of(cls, name: str, parts: Iterable[str], tokenizer: TextTokenizer) -> "Document":
        """A text in parts that are encoded one by one."""
        table = tokenizer.token_bytes()
        # Arrays that grow: lists of ids take ten times as much.
        whole, ids, sizes, is_kept = bytearray(), array("i", [tokenizer.end_of_text_id]), array("i", [0]), True
        for part in parts:
            own, offsets = tokenizer.encode_with_offsets(part)
            text, told = part.encode(), tokenizer.decode_bytes(own)
            whole += text
            ids.extend(own)
            sizes.extend([len(table[i]) for i in own] if len(text) == len(told) else _covered(part, offsets))
            is_kept &= told in (text, b" " + text)  # SentencePiece puts a space before a text
        return cls(name, bytes(whole), np.asarray(ids), np.asarray(sizes), is_kept)


@dataclass(frozen=True)
class Window:
    """Tokens of a text, of which the last are scored here."""

    where: str
    tokens: Tokens
    text: bytes  # that the scored tokens stand for


def documents(paths: Sequence[str], tokenizer: TextTokenizer) -> Iterator[Document]:
    """The documents in files, folders, globs, hub data sets or the village.

    Raises:
        DataError: a source can't be read.
    """
    for name, parts in groupby(_read(paths), lambda part: f"{part.source}:{part.position}"):
        yield Document.of(name, (part.text for part in parts), tokenizer)


def _read(paths: Sequence[str]) -> Iterator[Part]:
    reader = TextReader(sources.expand(paths))
    with console.progress("tokenising", sources.total_size_bytes(reader.sources), "B") as bar:
        for part in reader.documents():
            yield part
            bar.reach(reader.size_bytes_done)


def _covered(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The bytes from each token's end to the next one's, where tokens have more or less bytes than their text."""
    before_C = np.cumsum([0, *(len(character.encode()) for character in text)])
    end_N = np.maximum.accumulate(before_C[np.array([end for _, end in offsets], dtype=np.int64)])
    end_N[-1:] = before_C[-1]
    return [int(size) for size in np.diff(end_N, prepend=0)]


def windows(document: Document, context: int, stride: int = 0) -> Iterator[Window]:
    """Windows of `context` tokens over a document, that together score each of its tokens once.

    With stride 0 they are lm-evaluation-harness's (`loglikelihood_rolling`): side by side, and the last one reaches
    back as far as it can. A smaller stride gives each token more to go by, and costs more.
    """
    ids, first, before_N = document.ids, 1, np.cumsum(document.bytes_N, dtype=np.int64)
    while first < len(ids):
        end = min(len(ids), first + (context if first == 1 else stride or context))
        begin = max(0, end - 1 - context)
        tokens = Tokens(ids[begin:end].tolist(), first - begin)
        yield Window(f"{document.name}#{first}", tokens, document.text[before_N[first - 1] : before_N[end - 1]])
        first = end


def score_windows(scorer: Scorer, found: Sequence[Window], end_of_text_id: int) -> list[ItemScore]:
    """Nats, tokens and bytes of each window; of a document with its neighbours it is one cluster."""
    scores = scorer.score([window.tokens for window in found])
    names = [window.where.rpartition("#")[0] for window in found]
    clustered = len(set(names)) >= ENOUGH_DOCUMENTS
    items = []
    for window, name, score in zip(found, names, scores, strict=True):
        is_text_N = np.asarray(window.tokens.ids[window.tokens.start :]) != end_of_text_id
        nats, num_tokens = float(-score.logprobs[is_text_N].sum()), int(is_text_N.sum())
        values = {"bits_per_byte": Ratio(nats / log(2), len(window.text)), "nats_per_token": Ratio(nats, num_tokens)}
        items.append(ItemScore(window.where, "", name if clustered else "", values))
    return items


def spread(count: int, limit: int | None) -> list[int]:
    """The places of at most `limit` among `count` things, spread evenly."""
    chosen = min(limit or count, count)
    return [i * count // chosen for i in range(chosen)] if count else []


def perplexity(items: Sequence[ItemScore]) -> Estimate:
    """exp of the nats/token, with the interval of those; unknown where it is too wide to say anything."""
    pairs = [value for item in items if isinstance(value := item.values["nats_per_token"], Ratio)]
    clusters = [item.cluster or item.where for item in items]
    nats = ratio([p.part for p in pairs], [p.whole for p in pairs], clusters)
    low, high = (exp(nats.low), exp(nats.high)) if nats.high < LARGEST else (-inf, inf)
    return Estimate(exp(nats.value), low, high, nats.n)


def scores_of(subject: Subject, found: Sequence[Window], settings: dict[str, object]) -> Scores:
    """What a task of text has to say of its windows, beside what the same ones cost without a neural model."""
    end, ngrams, text = subject.tokenizer.end_of_text_id, subject.ngrams, b"".join(window.text for window in found)
    if ngrams:
        baseline, name = ngram_bits_per_byte(ngrams, [w.tokens for w in found], len(text), end), ngrams.name
    else:
        baseline, name = compressed_bits_per_byte(text), "xz -9"
    items = score_windows(subject.scorer, found, end)
    settings |= {"baseline": name, "windows": len(found)}
    return Scores(items, {"bits_per_byte": baseline}, {"perplexity": perplexity(items)}, settings)
