"""Where policies stand under the frontier: reward at KL, and the share of the gain that was possible there.

Shapes: P prompts, N answers of the reference to each, G policies of the frontier, K distances, R weightings of the
prompts: all alike first, then resamples, from which come all intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from rlhf import frontier
from rlhf.drawn import Drawn
from rlhf.frontier import Frontier

Number = dict[str, float | None]  # value, low and high of the 95 % interval; None where there is none

BEST_OF = "best-of-n"
RESAMPLES = 2000
TOLD_KL = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)  # nats at which the frontier is told


@dataclass(frozen=True)
class Point:
    """One policy: means over its answers to each prompt, (P,), and what the answers are like."""

    name: str
    method: str  # reference, best-of-n, ppo, dpo ...
    kl: ndarray
    reward: ndarray
    gold: ndarray | None
    told: dict[str, float]


def mean_point(name: str, method: str, answers: Drawn, num_told: int) -> Point:
    """A policy from its own answers."""
    gold_P = None if answers.gold is None else answers.gold.mean(1)
    return Point(name, method, answers.kl.mean(1), answers.reward.mean(1), gold_P, answers.told(num_told))


def best_of(n: int, answers: Drawn, num_told: int) -> Point:
    """Best-of-n from the reference's answers; what its answers are like is told by the best of each n in a row."""
    found, num_groups = frontier.best_of(n, answers.reward), answers.reward.shape[1] // n
    reward_P = (found.weight * answers.reward).sum(1)
    gold_P = None if answers.gold is None else (found.weight * answers.gold).sum(1)
    place_PA = answers.reward[:, : num_groups * n].reshape(-1, num_groups, n).argmax(2)
    told = answers.chosen(place_PA + n * np.arange(num_groups)).told(num_told)
    return Point(f"best of {n}", BEST_OF, found.kl, reward_P, gold_P, told)


class Standing:
    """Measures points against the reference and its frontier."""

    def __init__(self, reference: Point, answers: Drawn, seed: int) -> None:
        """Trace the frontier.

        Args:
            answers: the reference's.
            seed: of the resamples.
        """
        num_prompts = len(reference.reward)
        equal_P = np.full(num_prompts, 1 / num_prompts)
        counts_RP = np.random.default_rng(seed).multinomial(num_prompts, equal_P, RESAMPLES)
        self._share_RP = np.concatenate([equal_P[None], counts_RP / num_prompts])
        self._reference, self._reward_PN = reference, answers.reward
        self._frontier: Frontier = frontier.trace(answers.reward, answers.gold)
        self._trusted_R = self._frontier.trusted_kl(self._share_RP)
        self.trusted_kl = _finite(self._trusted_R[0])  # None: the whole frontier is to be trusted

    def line(self, point: Point) -> dict[str, Any]:
        """All that is told of a policy; where its KL is beyond trust, the share is that of the gain possible before."""
        kl_R = self._mean(point.kl)
        limit_R = np.minimum(kl_R, self._trusted_R)
        gain_R = self._mean(point.reward - self._reference.reward)
        possible_R = self._possible("reward", limit_R[:, None])[:, 0]
        # Where nothing can be gained, as at no KL, there is no share of it.
        share_R = np.divide(gain_R, possible_R, where=possible_R > 1e-9, out=np.full(len(gain_R), np.nan))
        line = {
            "name": point.name,
            "method": point.method,
            "kl": _number(kl_R),
            "reward": float(point.reward.mean()),
            "gain": _number(gain_R),
            "possible_gain": _number(possible_R),
            "share": _number(share_R),
            "share_kl": float(limit_R[0]),
            "is_trusted": bool(kl_R[0] <= self._trusted_R[0]),
            **point.told,
        }
        if point.gold is not None:
            line |= {
                "gold": float(point.gold.mean()),
                "gold_gain": _number(self._mean(point.gold - self._reference.gold)),
            }
        return line

    def flags(self, points: Sequence[Point]) -> list[str]:
        """What is certainly not as it should be."""
        flags, baselines = [], [point for point in points if point.method == BEST_OF]
        for point in points:
            if point is self._reference or point in baselines:
                continue
            nearer = [other for other in baselines if other.kl.mean() <= point.kl.mean()]
            better = [other.name for other in nearer if self._is_less(point.reward, other.reward)]
            if better:
                flags.append(f"{point.name} has less reward than {better[-1]}, which is no farther from the reference")
            if self._is_less(self._reference.reward, point.reward) and self._is_less(point.gold, self._reference.gold):
                flags.append(f"{point.name} has more reward than the reference and less gold reward: over-optimised")
        return flags

    def curve(self, kl_K: ndarray) -> list[dict[str, Any]]:
        """What the best policies at some distances gain."""
        kl_RK = np.broadcast_to(kl_K, (len(self._share_RP), len(kl_K)))
        names = {"gain": "reward"} | ({} if self._frontier.gold is None else {"gold_gain": "gold"})
        found = {name: self._possible(what, kl_RK) for name, what in names.items()}
        return [
            {"kl": float(kl), "is_trusted": bool(kl <= self._trusted_R[0])}
            | {name: _number(gain_RK[:, k]) for name, gain_RK in found.items()}
            for k, kl in enumerate(kl_K)
        ]

    def told_frontier(self) -> list[dict[str, Any]]:
        """The curve at a few distances, up to where it ends or trust in it, with what the trust rests on."""
        found = self._frontier
        kl_G = found.kl.mean(0)
        end = min(self._trusted_R[0], kl_G[-1])
        kl_K = np.array([kl for kl in TOLD_KL if kl < end] + [end])
        place_K = kl_G.searchsorted(kl_K).clip(max=len(kl_G) - 1)
        shortfall_K = frontier.shortfall(self._reward_PN, kl_K)
        return [
            line
            | {
                "beta": _finite(found.beta[place]),
                "effective_answers": float(found.effective[:, place].mean()),
                "thin_share": float((found.effective[:, place] < frontier.LEAST_EFFECTIVE).mean()),
                "shortfall": float(shortfall),
            }
            for line, place, shortfall in zip(self.curve(kl_K), place_K, shortfall_K, strict=True)
        ]

    def _possible(self, what: str, kl_RK: ndarray) -> ndarray:
        """By how much (R, K) the `reward` or `gold` of the best policies is above the reference's."""
        value_RK = self._frontier.at(kl_RK, self._share_RP, getattr(self._frontier, what))
        return np.asarray(value_RK - self._mean(getattr(self._reference, what))[:, None])

    def _mean(self, value_P: ndarray) -> ndarray:
        return np.asarray(self._share_RP @ value_P)

    def _is_less(self, first_P: ndarray | None, second_P: ndarray | None) -> bool:
        """Whether the whole interval of the paired difference says so."""
        if first_P is None or second_P is None:
            return False
        return bool(np.quantile(self._mean(first_P - second_P)[1:], 0.975) < 0)


def _number(value_R: ndarray) -> Number:
    """A value, with the percentile interval of its resamples unless one of them has none."""
    low, high = np.quantile(value_R[1:], [0.025, 0.975])
    return {"value": _finite(value_R[0]), "low": _finite(low), "high": _finite(high)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
