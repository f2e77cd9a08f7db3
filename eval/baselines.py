"""What a text costs without a neural model: an interpolated Kneser-Ney model over the same tokens, or a compressor.

Counts are kept as sorted arrays of 64-bit hashes, so a million tokens take seconds and no dictionary.
"""

import lzma
from collections.abc import Iterable, Sequence
from math import log

import numpy as np

from eval.ngrams import hashes_of
from eval.token_tree import Tokens


class NgramModel:
    """Interpolated Kneser-Ney over token ids, with one discount for each order.

    Source: Chen and Goodman 1999, section 4.1 (their interpolated form of eq. 29), discount n1 / (n1 + 2 n2).
    """

    def __init__(self, ids: np.ndarray, vocab_size: int, order: int = 5) -> None:
        """Count the n-grams of a stream of ids, int64 (n,)."""
        self._order, self._vocab_size = order, vocab_size
        self.name = f"{order}-gram, Kneser-Ney, {len(ids):,} training tokens"
        hashes = _hashes(ids, order)
        self._levels = []
        for size in range(1, order + 1):
            if size == order:
                gram_N, first_N, count_N = np.unique(hashes[size], return_index=True, return_counts=True)
            else:
                # Below the highest order counts the number of different ids that stand before.
                _, first_N = np.unique(hashes[size + 1], return_index=True)
                gram_N, again_N, count_N = np.unique(hashes[size][first_N + 1], return_index=True, return_counts=True)
                first_N = first_N[again_N] + 1
            self._levels.append(_Level(gram_N, count_N, hashes[size - 1][first_N]))

    def logprobs(self, ids: np.ndarray) -> np.ndarray:
        """float64 (n - 1,): the log-probability in nats of each id but the first, after up to `order` - 1 others."""
        probability_N = np.full(len(ids), 1 / self._vocab_size)
        hashes = _hashes(ids, self._order)
        for size, level in enumerate(self._levels, 1):
            if len(ids) < size:
                break
            context_N = hashes[size - 1][: len(hashes[size])]
            shorter_N = probability_N[size - 1 :]
            probability_N[size - 1 :] = level.interpolate(hashes[size], context_N, shorter_N)
        return np.asarray(np.log(probability_N[1:]))

    def totals(self, sequences: Sequence[Tokens]) -> list[float]:
        """The log-probability in nats of what is scored of each sequence, many read at once."""
        found: list[float] = []
        gap = [-1] * (self._order - 1)  # an id that no text has: nothing is known of what stands behind it
        for start in range(0, len(sequences), 1024):
            some, place = sequences[start : start + 1024], 0
            nats = self.logprobs(np.concatenate([[*tokens.ids, *gap] for tokens in some]))
            for tokens in some:
                found.append(float(nats[place + tokens.start - 1 : place + len(tokens.ids) - 1].sum()))
                place += len(tokens.ids) + len(gap)
        return found


class _Level:
    """The n-grams of one length, their counts, and what their contexts add up to."""

    def __init__(self, gram_N: np.ndarray, count_N: np.ndarray, context_N: np.ndarray) -> None:
        self._gram_N, self._count_N = gram_N, count_N
        self._context_C, index_N, self._kinds_C = np.unique(context_N, return_inverse=True, return_counts=True)
        self._total_C = np.bincount(index_N, weights=count_N)
        once, twice = (int((count_N == times).sum()) for times in (1, 2))
        self._discount = once / (once + 2 * twice) if once else 0.5

    def interpolate(self, gram_N: np.ndarray, context_N: np.ndarray, shorter_N: np.ndarray) -> np.ndarray:
        """Probabilities from those of the order below; unchanged where a context was never seen."""
        count_N = _look_up(self._gram_N, self._count_N, gram_N)
        total_N = _look_up(self._context_C, self._total_C, context_N)
        kinds_N = _look_up(self._context_C, self._kinds_C, context_N)
        discount, known_N = self._discount, total_N > 0
        mixed_N = np.maximum(count_N - discount, 0) + discount * kinds_N * shorter_N
        return np.where(known_N, mixed_N / np.maximum(total_N, 1), shorter_N)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted_N: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is not there."""
    place_N = np.searchsorted(keys, wanted_N).clip(max=len(keys) - 1)
    return np.where(keys[place_N] == wanted_N, values[place_N], 0).astype(float)


def _hashes(ids: np.ndarray, order: int) -> list[np.ndarray]:
    """For each length from 0 to `order` the hash of every stretch of ids, uint64 (n - length + 1,)."""
    return [np.zeros(len(ids) + 1, np.uint64), *(hashes_of(ids, size) for size in range(1, order + 1))]


def ngram_bits_per_byte(model: NgramModel, pieces: Iterable[Tokens], num_bytes: int, end_of_text_id: int) -> float:
    """Bits per byte of what is scored of texts, by an n-gram model of the same tokens; document ends are context only.

    Args:
        num_bytes: of all that is scored.
    """
    nats = 0.0
    for tokens in pieces:
        ids = np.asarray(tokens.ids)
        nats -= float(model.logprobs(ids)[tokens.start - 1 :][ids[tokens.start :] != end_of_text_id].sum())
    return nats / log(2) / max(1, num_bytes)


def compressed_bits_per_byte(text: bytes) -> float:
    """Bits per byte of a text packed by xz: the baseline where there is no text to count n-grams in."""
    return 8 * len(lzma.compress(text, preset=9)) / max(1, len(text))
