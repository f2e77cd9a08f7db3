"""The set of digests against Python's own."""

import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.digests import DigestSet
from fledge.data.text import digest


@given(st.lists(st.integers(0, 40)))
def test_it_behaves_like_a_set(numbers: list[int]) -> None:
    ours, theirs = DigestSet(capacity=2), set()
    for number in numbers:
        assert ours.add(digest(bytes([number]))) == (number not in theirs)
        theirs.add(number)
    assert len(ours) == len(theirs)


def test_it_survives_saving(tmp_path: Path) -> None:
    seen = DigestSet(capacity=4)
    for number in range(100):
        seen.add(digest(str(number).encode()))
    seen.save(tmp_path / "seen.bin")
    again = DigestSet.load(tmp_path / "seen.bin")
    assert len(again) == 100
    assert not any(again.add(digest(str(number).encode())) for number in range(100))
    assert again.add(b"something new 16")


def test_a_digest_of_zeros_is_one_like_others() -> None:
    seen = DigestSet()
    assert [seen.add(bytes(16)), seen.add(bytes(16)), len(seen)] == [True, False, 1]


def test_growing_takes_no_more_than_the_two_tables() -> None:
    seen = DigestSet(capacity=1 << 20)
    seen._table[::2] = np.random.default_rng(0).integers(1, 1 << 63, 1 << 19, dtype=np.uint64)
    tracemalloc.start()
    seen._grow()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1.6 * seen._table.nbytes  # the new one and what is being moved
