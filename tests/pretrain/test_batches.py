"""Batches are a pure function of (seed, step)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import DataError
from pretrain.batches import Batches, ReadAhead, permuted


class Ramp:
    """A stream in which token i is i."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def read(self, start: int, count: int) -> np.ndarray:
        assert start >= 0
        assert start + count <= self.num_tokens
        return np.arange(start, start + count)


@given(st.integers(1, 300), st.integers(0, 1 << 40), st.integers(0, 5))
def test_permuted_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permuted(place, size, seed, epoch) for place in range(size)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permuted(p, 50, seed, epoch) for p in range(50)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_every_window_is_read_once_an_epoch() -> None:
    batches = Batches(Ramp(1000), context=10, sequences=3, seed=7)
    assert batches.num_windows == 99
    starts = np.concatenate([batches.batch(i)[0][:, 0].numpy() for i in range(33)])
    assert len(set(starts)) == 99
    assert len({start % 10 for start in starts}) == 1  # one offset for the whole epoch


def test_an_epoch_has_its_own_order_and_offset() -> None:
    # 99 windows an epoch, in 33 batches.
    batches = Batches(Ramp(1000), context=10, sequences=3, seed=7)
    first, second = (
        np.concatenate([batches.batch(i)[0][:, 0].numpy() for i in range(start, start + 33)]) for start in (0, 33)
    )
    assert first[0] % 10 != second[0] % 10
    assert (first // 10).tolist() != (second // 10).tolist()


@pytest.mark.parametrize("num_parts", [2, 3])
def test_the_parts_of_a_batch_are_the_batch(num_parts: int) -> None:
    batches = Batches(Ramp(5000), 16, 6, seed=0)
    parts = [batches.batch(4, part, num_parts)[0] for part in range(num_parts)]
    assert torch.equal(torch.cat(parts), batches.batch(4)[0])


def test_targets_are_the_next_tokens() -> None:
    ids, targets = Batches(Ramp(100), context=8, sequences=4, seed=0).batch(2)
    assert ids.shape == targets.shape == (4, 8)
    assert ids.dtype == targets.dtype == torch.int64
    torch.testing.assert_close(targets, ids + 1)


def test_a_batch_depends_on_seed_and_index_only() -> None:
    one, two = (Batches(Ramp(5000), 16, 4, seed=3) for _ in range(2))
    two.batch(0)
    two.batch(17)
    assert torch.equal(one.batch(42)[0], two.batch(42)[0])
    assert not torch.equal(one.batch(42)[0], Batches(Ramp(5000), 16, 4, seed=4).batch(42)[0])


def test_windows_of_the_same_rows_whatever_the_batch_size() -> None:
    # What a rank or another batch size reads is a slice of the same order.
    small, large = Batches(Ramp(5000), 16, 2, seed=0), Batches(Ramp(5000), 16, 6, seed=0)
    joined = torch.cat([small.batch(i)[0] for i in range(3)])
    assert torch.equal(joined, large.batch(0)[0])


def test_read_ahead_gives_the_same_slices_in_any_order() -> None:
    batches = Batches(Ramp(5000), 16, 6, seed=0)
    ahead = ReadAhead(batches, part=1, num_parts=3)
    for index in (0, 1, 2, 7, 7, 3):  # a roll-back or a resumed run jumps
        for found, expected in zip(ahead.batch(index, "cpu"), batches.batch(index, 1, 3), strict=True):
            assert torch.equal(found, expected)


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(DataError, match="has 19 tokens, too few for one window of 10; prepare more text"):
        Batches(Ramp(19), context=10, sequences=1, seed=0)
