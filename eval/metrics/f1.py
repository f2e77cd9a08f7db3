"""The harmonic mean of precision and recall."""

from collections.abc import Hashable, Sequence

from eval.metric_module import wrapped


def f1(predictions: Sequence[Hashable], references: Sequence[Hashable], positive: Hashable | None = None) -> float:
    """F1 of one label; or, without `positive`, the unweighted mean over all labels (macro F1).

    0 where a label is neither predicted nor true. F1 is 2 true positives / (predicted + true).
    """
    pairs = list(zip(predictions, references, strict=True))
    labels = {label for pair in pairs for label in pair} if positive is None else {positive}
    return sum(_of_label(pairs, label) for label in labels) / len(labels)


def _of_label(pairs: Sequence[tuple[Hashable, Hashable]], label: Hashable) -> float:
    both = sum(predicted == label == true for predicted, true in pairs)
    either = sum((predicted == label) + (true == label) for predicted, true in pairs)
    return 2 * both / either if either else 0.0


Metric = wrapped(f1, reads="labels")
