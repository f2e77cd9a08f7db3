"""The highest reward that any policy can have at a given distance from the reference, from samples of the reference.

Distance is KL(pi || reference) of a whole answer, in nats, averaged over prompts. Among all policies within a distance
the best is pi*(y|x), proportional to reference(y|x) exp(r(x, y) / beta), with one beta for all prompts. For any policy
E[r] - beta KL(pi || reference) = beta E_x log Z(x) - beta E_x KL(pi || pi*), where Z(x) = E_reference exp(r / beta):
pi* is the best by this measure, so no policy of as little KL has more reward. As beta goes from infinity to 0 the
points of pi* are the whole frontier. (The Lagrangian of the constraint; Rafailov et al. 2023, arXiv 2305.18290, A.1.)

Estimate: of N answers of the reference, answer i stands for pi* with weight softmax(r / beta)_i. That is the exact
frontier of the N answers drawn, whose KL is at most log N. Of the whole frontier it is on average too low: it equals
min over beta of beta KL + beta E_x log mean_i exp(r_i / beta), which is concave in the means of the sample (Jensen). By
the same argument it rises with N; `shortfall` tells how far it may still have to.

Shapes: P prompts, N answers of the reference to each, G values of beta, R weightings of the prompts, K distances.
"""

from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np
from numpy import ndarray
from scipy.special import softmax, xlogy

# Fewer answers than this, in effect, carry no average.
LEAST_EFFECTIVE = 10.0
# From hardly any preference to the best answer alone, in spreads of the reward; about 50 a decade, so that the straight
# lines between them lie within 1e-3 of the gain below the curve.
_BETAS = np.geomspace(1e2, 1e-3, 240)


@dataclass(frozen=True)
class Frontier:
    """The best policies for falling beta, beginning with the reference itself (beta infinite)."""

    beta: ndarray  # (G,), in units of the reward
    reward: ndarray  # (P, G)
    kl: ndarray  # (P, G), nats an answer
    effective: ndarray  # (P, G), effective sample size, 1 to N: 1 / sum of squared weights (Kish 1965)
    gold: ndarray | None  # (P, G), a second reward of these policies

    @cached_property
    def last_trusted(self) -> int:
        """The place in G of the smallest beta at which the effective sample size is large enough on average."""
        return int((self.effective.mean(0) >= LEAST_EFFECTIVE).sum()) - 1

    def trusted_kl(self, share_RP: ndarray) -> ndarray:
        """The largest KL (R,) up to which the frontier is to be trusted; infinite where no prompt ever has too few."""
        if (self.effective[:, -1] >= LEAST_EFFECTIVE).all():
            return np.full(len(share_RP), np.inf)
        return np.asarray(share_RP @ self.kl[:, self.last_trusted])

    def at(self, kl_RK: ndarray, share_RP: ndarray, value_PG: ndarray) -> ndarray:
        """The mean (R, K) that the best policies within mean KLs have, such as of `reward` or `gold`.

        Args:
            share_RP: how much the prompts count in each row; rows sum to 1.
        """
        curves = zip(kl_RK, share_RP @ self.kl, share_RP @ value_PG, strict=True)
        return np.array([np.interp(kl_K, kl_G, value_G) for kl_K, kl_G, value_G in curves])


def trace(reward_PN: ndarray, gold_PN: ndarray | None = None) -> Frontier:
    """The frontier from the rewards of answers sampled from the reference."""
    spread = float(np.sqrt(reward_PN.var(1).mean()))
    beta_G = np.concatenate([[np.inf], spread * _BETAS]) if spread else np.array([np.inf])
    columns = []
    for beta in beta_G:
        weight_PN = softmax(reward_PN / beta, axis=1)
        means = [(weight_PN * x_PN).sum(1) for x_PN in (reward_PN, gold_PN) if x_PN is not None]
        columns.append([divergence(weight_PN), 1 / np.square(weight_PN).sum(1), *means])
    kl_PG, effective_PG, best_PG, *gold_PG = np.moveaxis(np.array(columns), 0, 2)
    return Frontier(beta_G, best_PG, kl_PG, effective_PG, gold_PG[0] if gold_PG else None)


def divergence(weight_PN: ndarray) -> ndarray:
    """KL (P,) in nats to the reference of a policy that gives its N answers these weights (rows sum to 1)."""
    return np.asarray(xlogy(weight_PN, weight_PN * weight_PN.shape[1]).sum(1))


def shortfall(reward_PN: ndarray, kl_K: ndarray) -> ndarray:
    """About how much too low (K,) the frontier is at some KLs: how much lower still it is from half of the answers.

    That is the bias itself where it falls like 1/N (half-sampling, as in Quenouille's jackknife of 1949).
    """
    equal_1P = np.full((1, len(reward_PN)), 1 / len(reward_PN))
    parts = reward_PN, reward_PN[:, ::2], reward_PN[:, 1::2]
    found = [trace(part) for part in parts]
    whole_K, first_K, second_K = (one.at(kl_K[None], equal_1P, one.reward)[0] for one in found)
    return np.asarray(whole_K - (first_K + second_K) / 2)


@dataclass(frozen=True)
class BestOf:
    """The policy that draws n answers of the reference and keeps the one of highest reward."""

    weight: ndarray  # (P, N), how often each of the N answers is the best of n different ones; rows sum to 1
    kl: ndarray  # (P,), nats an answer


def best_of(n: int, reward_PN: ndarray) -> BestOf:
    """Best-of-n from N >= n answers; equal rewards share.

    The mean reward under `weight` is that of the best in all sets of n of the N answers: exact, and without bias.
    The KL is that of the best of n drawn from the N with replacement. Where no two rewards are equal it is
    log n - (n - 1) / n but for terms of (n / N)^2; where some are, it is less, and that figure only a bound.
    Source: Beirami et al. 2024 (arXiv 2401.01879).
    """
    num_answers = reward_PN.shape[1]
    ordered_PN = np.sort(reward_PN, axis=1)
    pairs = list(zip(ordered_PN, reward_PN, strict=True))
    below_PN = np.array([np.searchsorted(ordered_N, reward_N, "left") for ordered_N, reward_N in pairs])
    up_to_PN = np.array([np.searchsorted(ordered_N, reward_N, "right") for ordered_N, reward_N in pairs])
    # The chance that all n are among the k lowest, k = 0..N: n different answers, and n with replacement.
    different = np.array([comb(k, n) / comb(num_answers, n) for k in range(num_answers + 1)])
    repeated = (np.arange(num_answers + 1) / num_answers) ** n
    weight_PN, drawn_PN = (
        (chance[up_to_PN] - chance[below_PN]) / (up_to_PN - below_PN) for chance in (different, repeated)
    )
    return BestOf(weight_PN, divergence(drawn_PN))
