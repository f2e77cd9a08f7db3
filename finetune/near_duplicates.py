"""Groups of texts that say the same but for digits, case, punctuation or a few words.

Copies of one message on both sides of a split would let a model score by remembering.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

SHINGLE = 5  # characters; UTF-8 bytes of the normal form, so that one fits into 40 bits
BANDS, ROWS = 24, 4  # texts that share 0.7 of their shingles become candidates with probability 0.998
SIMILARITY = 0.7  # Jaccard index of the shingles, from which on texts are taken for copies


def normal_form(text: str) -> str:
    """A text without what copies differ in: compatibility forms, case, digits masked, punctuation, spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", re.sub(r"\d", "0", folded)).strip()


def group(texts: Sequence[str]) -> list[int]:
    """A group number for each text; near-duplicates, and near-duplicates of those, have the same.

    MinHash finds candidates in linear time (Broder 1997, "On the resemblance and containment of documents"),
    the Jaccard index of their shingles decides.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shingles = [_shingles(normal_form(text)) for text in texts]
    first: dict[tuple[int, bytes], int] = {}
    pairs: set[tuple[int, int]] = set()
    for number, own in enumerate(shingles):
        for band, key in enumerate(_band_keys(own)):
            other = first.setdefault((band, key), number)
            if other != number:
                pairs.add((other, number))
    alike = [(a, b) for a, b in sorted(pairs) if _jaccard(shingles[a], shingles[b]) >= SIMILARITY]
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


def _band_keys(shingles: np.ndarray) -> list[bytes]:
    """The least of each of many multiply-shift hashes over the shingles, cut into bands."""
    hashes = (shingles[:, None] * _FACTORS + _OFFSETS) >> np.uint64(32)
    return [band.tobytes() for band in hashes.min(0).reshape(BANDS, ROWS)]


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
