"""Held-out losses against a slow loop."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretrain.validation import Validation

LENGTHS = np.array([0, 1, 2, 3, 1])  # token 0 is special


class Stream:
    def __init__(self, ids: list[int]) -> None:
        self.ids, self.num_tokens = np.array(ids), len(ids)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.ids[start : start + count]


class Unigram(nn.Module):
    """A fixed distribution, so that windows don't matter."""

    log_probs = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15]).log()

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, reduction: str) -> Tensor:
        return torch.where(targets_BT == -100, 0.0, -self.log_probs[targets_BT.clamp(min=0)])


IDS = [0, 1, 2, 3, 0, 4, 4, 1, 2, 2, 0]


@pytest.mark.parametrize("context", [1, 3, 4, 10, 50])
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_losses_equal_a_slow_loop_for_every_window_and_batch(context: int, batch: int) -> None:
    found = Validation(Stream(IDS), context, LENGTHS, "cpu", batch=batch).measure(Unigram())
    nats = [-float(Unigram.log_probs[i]) for i in IDS[1:]]
    text = [n for n, i in zip(nats, IDS[1:], strict=True) if i != 0]
    text_bytes = int(sum(LENGTHS[i] for i in IDS))
    assert found.loss == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(sum(text) / math.log(2) / text_bytes, rel=1e-6)
    assert (found.tokens, found.text_bytes) == (len(IDS) - 1, text_bytes)


def test_a_part_of_the_windows_is_spread_evenly() -> None:
    stream = Stream([1] * 50 + [2] * 51)
    found = Validation(stream, 10, LENGTHS, "cpu").measure(Unigram(), sequences=2)
    assert found.tokens == 20
    # Ten windows: of the first all targets are 1, of the sixth (from token 50 on) all are 2.
    assert found.loss == pytest.approx(-(math.log(0.2) + math.log(0.3)) / 2, rel=1e-6)


def test_the_training_mode_is_left_as_it_was() -> None:
    model = Unigram()
    model.train()
    Validation(Stream(IDS), 4, LENGTHS, "cpu").measure(model)
    assert model.training
