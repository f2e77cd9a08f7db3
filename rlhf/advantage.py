"""How much better than expected each token of an answer was. Shapes: B answers, N tokens (padded to the right)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimates:
    """What the critic should have said, and by how much each token beat what it did say."""

    advantage_BN: Tensor  # 0 where there is no token
    return_BN: Tensor  # advantage + value: the critic's target; 0 where there is no token


def estimate(
    reward_BN: Tensor, value_BN: Tensor, is_token_BN: Tensor, discount: float = 1.0, trace: float = 0.95
) -> Estimates:
    """Generalised advantage estimation over each answer; nothing follows its last token.

    delta_t = r_t + discount V_{t+1} - V_t and A_t = delta_t + discount trace A_{t+1}, with V = A = 0 past the end.

    Args:
        reward_BN: float32, what each token earned.
        value_BN: float32, expected sum of rewards from each token on, before that token is known.
        is_token_BN: True for the tokens of an answer, which begin at 0 and have no gaps.
        discount: gamma; 1 counts late rewards in full.
        trace: lambda; 1 is the sum of rewards less the value, 0 looks one token ahead.
    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 11, 12 and 16.
    """
    reward_BN, value_BN = (x.masked_fill(~is_token_BN, 0) for x in (reward_BN, value_BN))
    advantage_BN = torch.zeros_like(value_BN)
    next_value_B = next_advantage_B = torch.zeros_like(value_BN[:, 0])
    for t in reversed(range(value_BN.shape[1])):
        delta_B = reward_BN[:, t] + discount * next_value_B - value_BN[:, t]
        # Where there is no token all terms are 0, so an answer's last token sees nothing after it.
        next_advantage_B = delta_B + discount * trace * next_advantage_B
        next_value_B = value_BN[:, t]
        advantage_BN[:, t] = next_advantage_B
    return Estimates(advantage_BN, advantage_BN + value_BN)


def whiten(x_BN: Tensor, is_token_BN: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all tokens together; 0 where there is none.

    Source: Huang et al. 2024 (arXiv 2403.17031); the variance is that of the tokens at hand (no n - 1).
    """
    tokens = x_BN[is_token_BN]
    scale = torch.rsqrt(tokens.var(unbiased=False) + 1e-8)
    return ((x_BN - tokens.mean()) * scale).masked_fill(~is_token_BN, 0)
