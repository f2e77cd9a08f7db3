"""Probabilities that mean what they say, and the probability from which on a label is chosen.

Both are fitted on the validation part and never on the test part.
"""

from typing import Literal

import numpy as np


def temperature(logits_NC: np.ndarray, truth_N: np.ndarray) -> float:
    """What to divide logits by for the least log-loss; in [1/4, 20], as a part without a mistake asks for 0.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2. The loss is convex in 1 / temperature.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_inverse: float) -> float:
        log_probability_NC = log_softmax(logits_NC * np.exp(log_inverse), axis=1)
        return float(-log_probability_NC[np.arange(len(truth_N)), truth_N].mean())

    bounds = (-float(np.log(20)), float(np.log(4)))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(-found.x))


def threshold(
    probability_N: np.ndarray, truth_N: np.ndarray, best: Literal["f1", "accuracy"], positive: int = 1
) -> float:
    """The probability of label 1 from which on choosing it scores best; the middle of the best gap.

    Args:
        truth_N: 1 where label 1 is true.
        positive: the label whose F1 is to be best, 0 or 1.
    """
    if positive == 0:
        other = 1 - threshold(1 - probability_N, 1 - truth_N, best)
        return float(np.nextafter(np.float32(other), np.float32(2)))  # at the edge itself label 0 is chosen
    order = np.argsort(-probability_N, kind="stable")
    ranked, is_true = probability_N[order], truth_N[order] == 1
    edges = np.concatenate(([1.0], (ranked[:-1] + ranked[1:]) / 2, [0.0]))
    chosen = np.arange(len(ranked) + 1)  # so many are chosen at each edge
    right = np.concatenate(([0], np.cumsum(is_true)))
    if best == "f1":
        scores = 2 * right / np.maximum(chosen + is_true.sum(), 1)
    else:
        scores = right + (len(ranked) - is_true.sum()) - (chosen - right)
    # A gap of width 0 parts nothing; of equal scores the one nearest to 1/2.
    is_gap = np.concatenate(([True], ranked[:-1] > ranked[1:], [True]))
    best_scores = is_gap & (scores == scores[is_gap].max())
    return float(min(edges[best_scores], key=lambda edge: abs(edge - 0.5)))
