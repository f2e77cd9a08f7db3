"""PPO's losses, over the tokens of all answers in a row. Shapes: M tokens; all float32."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """Summed over tokens; the caller divides by how many there are in the whole minibatch."""

    total: Tensor  # scalar, with a gradient
    clipped: Tensor  # tokens whose ratio was cut, and so teach nothing
    kl_old: Tensor  # k3 estimate of KL(old || new), nats: how far the policy moved since it sampled
    ratio_error: Tensor  # largest |ratio - 1|; 0 before the first update


def policy_loss(logprob_M: Tensor, old_logprob_M: Tensor, advantage_M: Tensor, clip_ratio: float = 0.2) -> PolicyLoss:
    """Raise the probability of tokens that did better than expected, at most to 1 + clip_ratio times the old one.

    -min(ratio A, clip(ratio, 1 - c, 1 + c) A), ratio = exp(new - old log-probability).

    Args:
        logprob_M: under the policy that is trained, at the temperature sampled at.
        old_logprob_M: under the policy that sampled; no gradient.
        advantage_M: no gradient.
    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7.
    """
    log_ratio_M = logprob_M - old_logprob_M
    ratio_M = log_ratio_M.exp()
    cut_M = ratio_M.clamp(1 - clip_ratio, 1 + clip_ratio)
    with torch.no_grad():
        is_clipped_M = cut_M * advantage_M < ratio_M * advantage_M
        kl_old = (ratio_M - 1 - log_ratio_M).sum()
        ratio_error = (ratio_M - 1).abs().max()
    total = -torch.minimum(ratio_M * advantage_M, cut_M * advantage_M).sum()
    return PolicyLoss(total, is_clipped_M.sum(), kl_old, ratio_error)


def value_loss(value_M: Tensor, old_value_M: Tensor, return_M: Tensor, clip_value: float = 0.2) -> Tensor:
    """Half the squared error of the critic, summed; moving further than clip_value from the old value does not pay.

    0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2); clip_value 0 does not clip.
    Source: Huang et al. 2022, "The 37 implementation details of PPO", detail 9 (from OpenAI's baselines).
    """
    error_M = (value_M - return_M).square()
    if clip_value:
        cut_M = old_value_M + (value_M - old_value_M).clamp(-clip_value, clip_value)
        error_M = torch.maximum(error_M, (cut_M - return_M).square())
    return 0.5 * error_M.sum()


def explained_variance(value_M: Tensor, return_M: Tensor) -> float:
    """Share of the returns' variance that the critic foresaw: 1 all of it, 0 no better than their mean, or worse."""
    variance = return_M.var(unbiased=False)
    return float(1 - (return_M - value_M).var(unbiased=False) / variance) if variance > 0 else 0.0
