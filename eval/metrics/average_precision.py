"""The area under the curve of precision over recall."""

from collections.abc import Sequence

import numpy as np

from eval.metric_module import wrapped
from eval.metrics.auroc import one_against_rest


def average_precision(predictions: Sequence[float] | Sequence[Sequence[float]], references: Sequence[int]) -> float:
    """Precision averaged over recall, in [0, 1]; for guessing it is the share of the label.

    Arguments are those of `auroc`.
    """
    from sklearn.metrics import average_precision_score

    pairs = one_against_rest(predictions, references)
    values = [average_precision_score(is_label, scores) for scores, is_label in pairs]
    return float(np.mean(values)) if values else float("nan")


Metric = wrapped(average_precision, reads="probabilities")
