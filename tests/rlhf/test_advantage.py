"""Generalised advantage estimation, by a slow loop and by hand."""

import torch
from torch import Tensor

from rlhf.advantage import estimate, whiten


def is_token(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def test_by_hand() -> None:
    # Rewards 0, 1; values 0.5, 0.25; discount 0.5, trace 0.8.
    # delta_1 = 1 - 0.25 = 0.75; delta_0 = 0 + 0.5 * 0.25 - 0.5 = -0.375.
    # A_1 = 0.75; A_0 = -0.375 + 0.5 * 0.8 * 0.75 = -0.075. Returns: A + V = 0.425, 1. The third token is not there.
    found = estimate(torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.25, 9.0]]), is_token([2], 3), 0.5, 0.8)
    torch.testing.assert_close(found.advantage_BN, torch.tensor([[-0.075, 0.75, 0.0]]))
    torch.testing.assert_close(found.return_BN, torch.tensor([[0.425, 1.0, 0.0]]))


def test_equals_the_sum_of_discounted_errors() -> None:
    """Eq. 16 as it is written: A_t = sum over l of (discount trace)^l delta_{t+l}, one answer at a time."""
    generator = torch.Generator().manual_seed(0)
    lengths, discount, trace = [1, 4, 7], 0.9, 0.7
    reward_BN, value_BN = torch.randn(2, 3, 7, generator=generator)
    found = estimate(reward_BN, value_BN, is_token(lengths, 7), discount, trace)
    for row, length in enumerate(lengths):
        reward, value = reward_BN[row, :length].tolist(), [*value_BN[row, :length].tolist(), 0.0]
        delta = [reward[t] + discount * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            expected = sum((discount * trace) ** k * delta[t + k] for k in range(length - t))
            assert abs(float(found.advantage_BN[row, t]) - expected) < 1e-5


def test_with_trace_1_the_returns_are_the_rewards_to_come() -> None:
    reward_BN, value_BN = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1))
    found = estimate(reward_BN, value_BN, is_token([5, 5], 5), 1.0, 1.0)
    torch.testing.assert_close(found.return_BN, reward_BN.flip(1).cumsum(1).flip(1))


def test_padding_changes_nothing() -> None:
    reward_BN, value_BN = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(2))
    short = estimate(reward_BN, value_BN, is_token([4, 2], 4))
    wide = (torch.nn.functional.pad(reward_BN, (0, 3), value=7.0), torch.nn.functional.pad(value_BN, (0, 3), value=7.0))
    padded = estimate(*wide, is_token([4, 2], 7))
    assert torch.equal(padded.advantage_BN[:, :4], short.advantage_BN)
    assert not padded.return_BN[:, 4:].any()


def test_whitened_tokens_have_mean_0_and_variance_1_whatever_the_padding() -> None:
    x_BN = torch.randn(3, 6, generator=torch.Generator().manual_seed(3)) * 5 + 2
    is_token_BN = is_token([6, 3, 1], 6)
    white_BN = whiten(x_BN, is_token_BN)
    tokens = white_BN[is_token_BN]
    assert abs(float(tokens.mean())) < 1e-6
    assert abs(float(tokens.var(unbiased=False)) - 1) < 1e-5
    assert not white_BN[~is_token_BN].any()
