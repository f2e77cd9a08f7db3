"""The area under the receiver operating characteristic."""

from collections.abc import Sequence

import numpy as np

from eval.metric_module import wrapped


def auroc(predictions: Sequence[float] | Sequence[Sequence[float]], references: Sequence[int]) -> float:
    """Probability that a text of a label scores above one that is not of it; 0.5 for guessing.

    Args:
        predictions: of each row the probability of label 1, or of every label: the unweighted mean over labels.
        references: label numbers; a label that no row or every row has is left out of the mean,
            which is nan where none is left.
    """
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(is_label, scores) for scores, is_label in one_against_rest(predictions, references)]
    return float(np.mean(areas)) if areas else float("nan")


def one_against_rest(
    predictions: Sequence[float] | Sequence[Sequence[float]], references: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and truth of each label that some rows have and others have not; of two labels, of label 1 alone."""
    scores, truth = np.asarray(predictions, dtype=float), np.asarray(references)
    columns = {1: scores} if scores.ndim == 1 else dict(enumerate(scores.T))
    if len(columns) == 2:
        columns.pop(0)
    pairs = [(column, truth == label) for label, column in columns.items()]
    return [(column, is_label) for column, is_label in pairs if 0 < is_label.sum() < len(is_label)]


Metric = wrapped(auroc, reads="probabilities")
