"""Bits per byte and perplexity of text: windows over documents, and over a stream of them.

Every token is scored once, each window as far back as its stride leaves room for. Special tokens are context but are
never scored, and a byte counts where its token is scored, whether the token is valid UTF-8 by itself or not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, log

import numpy as np

from eval.baselines import ngram_bits_per_byte
from eval.harness import ItemScore, Scores
from eval.intervals import Estimate, ratio
from eval.items import Ratio
from eval.likelihood import Scorer
from eval.subject import Subject
from eval.token_tree import Tokens
from fledge.data import sources
from fledge.data.text import TextReader
from fledge.tokens import TextTokenizer

# Windows of a single text count as independent; documents do where there are enough of them for an interval.
ENOUGH_DOCUMENTS = 20
LARGEST = 700.0  # nats/token: beyond 709 exp is no float64


@dataclass(frozen=True)
class Document:
    """A text as ids, behind one end-of-text id."""

    name: str
    ids: np.ndarray  # int64


def documents(paths: Sequence[str], tokenizer: TextTokenizer) -> Iterator[Document]:
    """The documents in files, folders, globs, hub data sets or the village.

    Raises:
        DataError: a source can't be read.
    """
    reader = TextReader(sources.expand(paths))
    ids = [tokenizer.end_of_text_id]
    for part in reader.documents():
        ids += tokenizer.encode(part.text)
        if part.is_last_part:
            yield Document(f"{part.source}:{part.position}", np.array(ids))
            ids = [tokenizer.end_of_text_id]


def windows(document: Document, context: int, stride: int = 0) -> Iterator[tuple[str, Tokens]]:
    """Windows of `context` tokens over a document, that together score each of its tokens once.

    With stride 0 they are lm-evaluation-harness's (`loglikelihood_rolling`): side by side, and the last one reaches
    back as far as it can. A smaller stride gives each token more to go by, and costs more.
    """
    ids, first = document.ids, 1
    while first < len(ids):
        end = min(len(ids), first + (context if first == 1 else stride or context))
        begin = max(0, end - 1 - context)
        yield f"{document.name}#{first}", Tokens(ids[begin:end].tolist(), first - begin)
        first = end


def score_windows(scorer: Scorer, found: Sequence[tuple[str, Tokens]], token_bytes: Sequence[bytes]) -> list[ItemScore]:
    """Nats, tokens and bytes of each window; of a document with its neighbours it is one cluster."""
    length = np.array([len(piece) for piece in token_bytes])
    scores = scorer.score([tokens for _, tokens in found])
    names = [name.rpartition("#")[0] for name, _ in found]
    clustered = len(set(names)) >= ENOUGH_DOCUMENTS
    items = []
    for (where, tokens), name, score in zip(found, names, scores, strict=True):
        bytes_N = length[np.asarray(tokens.ids[tokens.start :])]
        nats, num_tokens = float(-score.logprobs[bytes_N > 0].sum()), int((bytes_N > 0).sum())
        values = {"bits_per_byte": Ratio(nats / log(2), int(bytes_N.sum())), "nats_per_token": Ratio(nats, num_tokens)}
        items.append(ItemScore(where, "", name if clustered else "", values))
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


def scores_of(
    subject: Subject,
    found: Sequence[tuple[str, Tokens]],
    baseline: tuple[float, str] | None,
    settings: dict[str, object],
) -> Scores:
    """What a task of text has to say of its windows.

    Args:
        baseline: bits per byte, and what they are of.
    """
    items = score_windows(subject.scorer, found, subject.tokenizer.token_bytes())
    baselines = {"bits_per_byte": baseline[0]} if baseline else {}
    settings |= {"baseline": baseline[1] if baseline else "", "windows": len(found)}
    return Scores(items, baselines, {"perplexity": perplexity(items)}, settings)


def ngram_baseline(subject: Subject, pieces: Sequence[np.ndarray]) -> tuple[float, str] | None:
    """Bits per byte of texts under a 5-gram model of the run's own training text, and its name; None without one."""
    model = subject.ngrams
    if model is None:
        return None
    return ngram_bits_per_byte(model, pieces, subject.tokenizer.token_bytes()), model.name
