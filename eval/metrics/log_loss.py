"""The cross-entropy of the true labels."""

from collections.abc import Sequence

import numpy as np

from eval.metric_module import wrapped

SMALLEST = 1e-12  # a probability of 0 for what is true counts as this, 27.6 nats


def log_loss(predictions: Sequence[float] | Sequence[Sequence[float]], references: Sequence[int]) -> float:
    """Mean negative log-probability of the true labels, in nats.

    Args:
        predictions: of each row the probability of label 1, or of every label.
        references: label numbers.
    """
    probability_NC = by_label(predictions)
    true_N = probability_NC[np.arange(len(probability_NC)), np.asarray(references)]
    return float(-np.log(np.maximum(true_N, SMALLEST)).mean())


def by_label(predictions: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    """Probabilities (N rows, C labels), also where only those of label 1 are given."""
    given = np.asarray(predictions, dtype=float)
    return np.stack((1 - given, given), 1) if given.ndim == 1 else given


Metric = wrapped(log_loss, reads="probabilities")
