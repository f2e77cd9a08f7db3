"""Which stretches of n ids stand in a stream, however long: what overlap and memorisation look for.

A stretch is known by a 64-bit hash that is rolled along the stream, so memory holds a hash for each stretch sought and
nothing of the stream. Two different stretches are taken for one with probability about (sought x read) / 2^64.
"""

from collections.abc import Sequence

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_CHUNK = 1 << 18  # ids hashed at once
_FILTER_BITS = 20  # of a hash; sorts out most of what is not sought by one look-up

_POWERS = np.multiply.accumulate(np.full(_CHUNK + 1, _BASE, np.uint64))
_INVERSES = np.multiply.accumulate(np.full(_CHUNK + 1, _INVERSE, np.uint64))


class Stretches:
    """The stretches of n ids in some sequences, and which of them a stream has."""

    def __init__(self, sequences: Sequence[np.ndarray], n: int) -> None:
        """Take in what to look for.

        Args:
            sequences: int64 (length,) each; those shorter than n have no stretch.
        """
        self._n = n
        hashes = [hashes_of(sequence, n) for sequence in sequences]
        self._sought, places = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]), return_inverse=True)
        self._places = np.split(places, np.cumsum([len(found) for found in hashes])[:-1]) if hashes else []
        self._is_found = np.zeros(len(self._sought), dtype=bool)
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._filter[self._sought >> np.uint64(64 - _FILTER_BITS)] = True
        self._tail = np.empty(0, dtype=np.int64)

    def read(self, ids: np.ndarray) -> None:
        """Look through the next ids of the stream; stretches that began in those before are seen."""
        stream = np.concatenate([self._tail, ids])
        self._tail = stream[max(0, len(stream) - self._n + 1) :]
        hashes = hashes_of(stream, self._n)
        hashes = hashes[self._filter[hashes >> np.uint64(64 - _FILTER_BITS)]]
        if len(hashes):
            nearest = np.searchsorted(self._sought, hashes).clip(max=len(self._sought) - 1)
            self._is_found[nearest[self._sought[nearest] == hashes]] = True

    def found(self) -> list[np.ndarray]:
        """For each sequence, bool for each of its stretches in order: whether the stream has it."""
        return [self._is_found[places] for places in self._places]


def hashes_of(ids: np.ndarray, n: int) -> np.ndarray:
    """uint64 hash of each stretch of n ids, in order; none where there are fewer than n."""
    starts = range(0, len(ids) - n + 1, _CHUNK - n + 1)
    return np.concatenate([_of_chunk(ids[i : i + _CHUNK], n) for i in starts] or [np.empty(0, np.uint64)])


def _of_chunk(ids: np.ndarray, n: int) -> np.ndarray:
    """As `hashes_of`: differences of prefix sums of id x base^place, moved to place 0."""
    # Neighbouring ids must not differ in their low bits only (splitmix64's first round).
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * _POWERS[: len(ids)], dtype=np.uint64)])
    hashes: np.ndarray = (sums[n:] - sums[:-n]) * _INVERSES[: len(ids) - n + 1]
    return hashes
