"""How often a reward agrees with the choices people made, and how much of that is more than length."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from scipy.special import expit

from eval.intervals import Difference, Estimate, Items, over_sets, paired_difference, ratio
from eval.metrics.calibration_error import calibration_error, reliability
from fledge.data.preferences import Pair

MATCHED = 0.1  # lengths that differ by at most this share of the longer one count as equal
NONE = Estimate(nan, nan, nan, 0)  # where no pair is of the kind


@dataclass(frozen=True)
class Agreement:
    """Shares of pairs whose chosen answer has the higher reward; ties are half. Pairs of a prompt are a cluster."""

    accuracy: Estimate
    length_matched: Estimate  # only pairs whose lengths in characters differ by at most MATCHED
    length_balanced: Estimate  # pairs whose longer answer was chosen, and the others, count alike: length gets 1/2


def agreement(pairs: Sequence[Pair], margin_N: np.ndarray) -> Agreement:
    """Measure margins: by how much the chosen answer's reward is higher."""
    won, clusters = wins(margin_N), [pair.hash for pair in pairs]
    lengths = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]

    def share(*kinds: Sequence[bool]) -> Estimate:
        sets: list[Items] = []
        for is_asked in kinds:
            places = [place for place, asked in enumerate(is_asked) if asked]
            if not places:
                return NONE
            sets.append(([won[p] for p in places], [1.0] * len(places), [clusters[p] for p in places]))
        return over_sets(sets)

    return Agreement(
        share([True] * len(pairs)),
        share([abs(a - b) <= MATCHED * max(a, b) for a, b in lengths]),
        share([a > b for a, b in lengths], [a < b for a, b in lengths]),
    )


def wins(margin_N: np.ndarray) -> list[float]:
    """1 where a margin is above 0, 1/2 where it is 0."""
    return [float(win) for win in (np.sign(margin_N) + 1) / 2]


def against(pairs: Sequence[Pair], baseline_N: np.ndarray, margin_N: np.ndarray) -> Difference:
    """The reward's accuracy less a baseline's on the same pairs."""
    clusters = [pair.hash for pair in pairs]
    repeated = clusters if len(set(clusters)) < len(clusters) else None
    return paired_difference(wins(baseline_N), wins(margin_N), repeated)


def mean_margin(pairs: Sequence[Pair], margin_N: np.ndarray) -> Estimate:
    """The mean margin; pairs of a prompt are a cluster."""
    return ratio(margin_N.tolist(), [1.0] * len(pairs), [pair.hash for pair in pairs])


def calibration(margin_N: np.ndarray) -> tuple[float, list[tuple[float, float, int]]]:
    """How far the probability sigmoid(|margin|) is from the share of right choices (ECE), and the curve's points."""
    probability_NC = np.stack([expit(margin_N), expit(-margin_N)], 1).tolist()
    chosen = [0] * len(margin_N)
    bins = reliability(probability_NC, chosen)
    points = [(part.confidence, part.accuracy, part.count) for part in bins]
    return calibration_error(probability_NC, chosen), points


def ceiling(pairs: Sequence[Pair], margin_N: np.ndarray) -> tuple[float, float] | None:
    """The best expected accuracy on these pairs, and the share of the way there from chance; None: not known, or 1/2.

    Known where all rows say with which probability the choice was to fall so (the village's `p_chosen`); the share
    is of expected accuracies, so the luck of these very choices is not in it.
    """
    chances = [pair.row.get("p_chosen") for pair in pairs]
    if not all(isinstance(chance, int | float) and 0 <= chance <= 1 for chance in chances):
        return None
    chance_N = np.array(chances, dtype=float)
    best = float(np.maximum(chance_N, 1 - chance_N).mean())
    if best <= 0.5:
        return None
    won_N = np.array(wins(margin_N))
    expected = float((won_N * chance_N + (1 - won_N) * (1 - chance_N)).mean())
    return best, (expected - 0.5) / (best - 0.5)
