"""A set of digests in little memory: finds rows that stand twice among many millions."""

from pathlib import Path

import numpy as np

_EMPTY = np.uint64(0)
_MOVED = 1 << 18  # places at once into a larger table


class DigestSet:
    """Digests by their first 64 bits, in an open-addressing table: 16 to 32 bytes each, for a moment 48 as it grows.

    Two different texts are taken for the same with probability n^2 / 2^65: 3 in a million for ten million rows.
    """

    def __init__(self, capacity: int = 1 << 12) -> None:
        self._table = np.zeros(capacity, dtype=np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, digest: bytes) -> bool:
        """Take in a digest; False if it was there before."""
        key = int.from_bytes(digest[:8], "little") or 1  # 0 marks an empty place
        place = self._place(key)
        if int(self._table[place]) == key:
            return False
        self._table[place] = key
        self._count += 1
        if 2 * self._count > len(self._table):
            self._grow()
        return True

    def _place(self, key: int) -> int:
        mask = len(self._table) - 1
        place = key & mask
        while self._table[place] != _EMPTY and int(self._table[place]) != key:
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        before = self._table
        self._table = np.zeros(2 * len(before), dtype=np.uint64)
        for start in range(0, len(before), _MOVED):
            keys = before[start : start + _MOVED]
            keys = keys[keys != _EMPTY]
            places = keys & np.uint64(len(self._table) - 1)
            while len(keys):  # each key takes its place if it is free; of several for one, the last; others go on
                is_free = self._table[places] == _EMPTY
                self._table[places[is_free]] = keys[is_free]
                is_left = self._table[places] != keys
                keys, places = keys[is_left], (places[is_left] + np.uint64(1)) & np.uint64(len(self._table) - 1)

    def save(self, file: Path) -> None:
        """Write the table, 8 bytes a place."""
        file.write_bytes(self._table.astype("<u8", copy=False).data)

    @classmethod
    def load(cls, file: Path) -> "DigestSet":
        """Read what `save` wrote."""
        loaded = cls()
        loaded._table = np.fromfile(file, dtype="<u8").astype(np.uint64, copy=False)
        loaded._count = int(np.count_nonzero(loaded._table))
        return loaded
