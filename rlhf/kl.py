"""How far the policy is from the reference, and how much each nat of it costs."""

from dataclasses import dataclass

from torch import Tensor


def k1(logprob: Tensor, reference_logprob: Tensor) -> Tensor:
    """log(pi / ref) of sampled tokens: unbiased for KL(pi || ref), of either sign.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return logprob - reference_logprob


def k3(logprob: Tensor, reference_logprob: Tensor) -> Tensor:
    """ref/pi - 1 - log(ref/pi) of sampled tokens: unbiased for KL(pi || ref), never negative, of less variance.

    As a penalty within the reward its gradient is not that of the KL; k1's is. Source: as k1.
    """
    log_ratio = reference_logprob - logprob
    return log_ratio.exp() - 1 - log_ratio


ESTIMATORS = {"k1": k1, "k3": k3}


@dataclass
class KLControl:
    """The price of a nat, fixed or led towards a target."""

    weight: float  # beta
    target: float = 0.0  # nats an answer to be led to; 0: the weight is fixed
    horizon: float = 10_000.0  # episodes: the larger, the slower

    def update(self, kl: float, num_episodes: int) -> None:
        """Raise the weight where the policy went too far, lower it where it stays too near.

        weight *= 1 + clip(kl / target - 1, -0.2, 0.2) episodes / horizon.
        Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.
        """
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.weight *= 1 + error * num_episodes / self.horizon
