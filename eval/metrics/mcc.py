"""Matthews' correlation coefficient."""

from collections.abc import Hashable, Sequence

from eval.metric_module import wrapped


def mcc(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Correlation of predicted and true labels, in [-1, 1]; 0 for guessing, whatever the shares of the labels.

    0 also where all predictions, or all true labels, are the same. Source: Matthews 1975; Gorodkin 2004 for
    more than two labels.
    """
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(list(references), list(predictions)))


Metric = wrapped(mcc, reads="labels")
