"""Stretches of ids in a stream."""

import numpy as np
import pytest

from eval.ngrams import Stretches, hashes_of


def slowly(sequence: list[int], n: int, stream: list[int]) -> list[bool]:
    """Whether each stretch stands in the stream, by comparing everything."""
    there = {tuple(stream[i : i + n]) for i in range(len(stream) - n + 1)}
    return [tuple(sequence[i : i + n]) in there for i in range(len(sequence) - n + 1)]


@pytest.mark.parametrize("n", [1, 3, 8])
def test_stretches_are_found_as_by_comparing_everything(n: int) -> None:
    draw = np.random.default_rng(0)
    stream = draw.integers(0, 4, 3000)
    sequences = [draw.integers(0, 4, length) for length in (0, 2, 5, 40, 300)]
    sequences.append(stream[100:140])
    search = Stretches(sequences, n)
    for start in range(0, 3000, 7):  # stretches across pieces are found, too
        search.read(stream[start : start + 7])
    expected = [slowly(s.tolist(), n, stream.tolist()) for s in sequences]
    assert [found.tolist() for found in search.found()] == expected


def test_hashes_do_not_depend_on_the_place() -> None:
    ids = np.random.default_rng(1).integers(0, 50000, 1 << 19)  # longer than what is hashed at once
    whole = hashes_of(ids, 13)
    assert len(whole) == len(ids) - 12
    assert len(np.unique(whole)) == len(whole)
    for start in (0, 7, (1 << 18) - 5, (1 << 19) - 13):
        assert whole[start] == hashes_of(ids[start : start + 13], 13)[0]


def test_nothing_sought_is_nothing_found() -> None:
    search = Stretches([], 5)
    search.read(np.arange(10))
    assert search.found() == []
