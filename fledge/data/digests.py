"""A set of digests in little memory: finds rows that stand twice among many millions."""

from pathlib import Path

import numpy as np

_EMPTY = np.uint64(0)


class DigestSet:
    """Digests by their first 64 bits, in an open-addressing table: about 16 to 32 bytes each.

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
        keys = self._table[self._table != _EMPTY]
        self._table = np.zeros(2 * len(self._table), dtype=np.uint64)
        for key in keys.tolist():
            self._table[self._place(key)] = key

    def save(self, file: Path) -> None:
        """Write the table, 8 bytes a place."""
        file.write_bytes(self._table.astype("<u8").tobytes())

    @classmethod
    def load(cls, file: Path) -> "DigestSet":
        """Read what `save` wrote."""
        loaded = cls()
        loaded._table = np.fromfile(file, dtype="<u8").astype(np.uint64)
        loaded._count = int(np.count_nonzero(loaded._table))
        return loaded
