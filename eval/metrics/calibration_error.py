"""How far confidence is from the share of right answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metric_module import wrapped
from eval.metrics.log_loss import by_label


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies in one interval."""

    count: int
    confidence: float  # mean probability of the likeliest label
    accuracy: float  # share of rows in which that label is the true one


def calibration_error(
    predictions: Sequence[float] | Sequence[Sequence[float]], references: Sequence[int], bins: int = 15
) -> float:
    """Expected calibration error: mean distance between confidence and accuracy over bins of equal width.

    Arguments are those of `log_loss`. Source: Guo et al. 2017 (arXiv 1706.04599), eq. 3.
    """
    parts = reliability(predictions, references, bins)
    return sum(part.count * abs(part.confidence - part.accuracy) for part in parts) / len(references)


def reliability(
    predictions: Sequence[float] | Sequence[Sequence[float]], references: Sequence[int], bins: int = 15
) -> list[Bin]:
    """The bins of a reliability curve that are not empty, by rising confidence."""
    probability_NC = by_label(predictions)
    confidence_N = probability_NC.max(1)
    is_right_N = probability_NC.argmax(1) == np.asarray(references)
    place_N = np.clip(np.ceil(confidence_N * bins) - 1, 0, bins - 1)
    groups = [place_N == place for place in np.unique(place_N)]
    return [Bin(int(g.sum()), float(confidence_N[g].mean()), float(is_right_N[g].mean())) for g in groups]


Metric = wrapped(calibration_error, reads="probabilities")
