"""Groups of texts that say the same but for digits, case, punctuation or a few words.

Copies of one message on both sides of a split would let a model score by remembering.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fledge import console

SHINGLE = 5  # characters; UTF-8 bytes of the normal form, so that one fits into 40 bits
BANDS, ROWS = 24, 4  # texts that share 0.7 of their shingles become candidates with probability 0.998
BUCKET = 256  # texts that a later one with the same band is compared with; where many share a frame, they are many
LIKELY = 0.5  # share of equal hashes, an estimate of the Jaccard index: 0.7 falls below it once in 30,000 times
SIMILARITY = 0.7  # Jaccard index of the shingles, from which on texts are taken for copies


def normal_form(text: str) -> str:
    """A text without what copies differ in: compatibility forms, case, digits masked, punctuation, spaces.

    Of a text that is nothing else, such as a smiley, the last two are kept.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", re.sub(r"\d", "0", folded)).strip() or folded


def group(texts: Sequence[str]) -> list[int]:
    """A group number for each text; near-duplicates, and near-duplicates of those, have the same.

    MinHash finds candidates in linear time (Broder 1997, "On the resemblance and containment of documents"),
    the Jaccard index of their shingles decides.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shingles: list[np.ndarray] = []
    least_NH = np.empty((len(texts), BANDS * ROWS), dtype=np.uint32)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)  # of texts that are no copies of each other
    alike: list[tuple[int, int]] = []
    with console.progress("near-duplicates", len(texts), "texts") as bar:
        for number, text in enumerate(texts):
            shingles.append(own := _shingles(normal_form(text)))
            least_NH[number] = least_H = _least_hashes(own)
            entered = [buckets[band, key.tobytes()] for band, key in enumerate(least_H.reshape(BANDS, ROWS))]
            others = np.array(sorted(set().union(*entered)), dtype=np.int64)
            likely = others[(least_NH[others] == least_H).mean(1) >= LIKELY].tolist()
            copies = {other for other in likely if _jaccard(shingles[other], own) >= SIMILARITY}
            alike += [(other, number) for other in copies]
            for bucket in entered:
                if len(bucket) < BUCKET and copies.isdisjoint(bucket):
                    bucket.append(number)
            bar.advance()
    left, right = np.array(alike, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(len(texts), len(texts)))
    return [int(label) for label in connected_components(graph, directed=False)[1]]


def _shingles(text: str) -> np.ndarray:
    """The distinct shingles of a text as uint64; a shorter text is padded to be one."""
    content = np.frombuffer(text.encode().ljust(SHINGLE, b" "), dtype=np.uint8).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(content, SHINGLE)
    return np.unique(windows @ (np.uint64(256) ** np.arange(SHINGLE, dtype=np.uint64)))


_GENERATOR = np.random.default_rng(0)  # fixed: the groups of a text do not depend on any seed
_FACTORS = _GENERATOR.integers(1, 1 << 63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _GENERATOR.integers(0, 1 << 63, BANDS * ROWS, dtype=np.uint64)


def _least_hashes(shingles: np.ndarray) -> np.ndarray:
    """The least of each of many multiply-shift hashes over the shingles."""
    hashes: np.ndarray = ((shingles[:, None] * _FACTORS + _OFFSETS) >> np.uint64(32)).min(0)
    return hashes.astype(np.uint32)


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
