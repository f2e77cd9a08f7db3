"""The share of right labels."""

from collections.abc import Hashable, Sequence

from eval.metric_module import wrapped


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """The share of predicted labels that are the true ones."""
    right = sum(predicted == true for predicted, true in zip(predictions, references, strict=True))
    return right / len(predictions)


Metric = wrapped(accuracy, reads="labels")
