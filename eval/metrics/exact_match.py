"""The share of texts that are right as they stand."""

from collections.abc import Sequence

from eval.metric_module import wrapped


def exact_match(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """The share of predictions that equal their reference, or one of their references.

    Outer white space does not count; everything else does.
    """
    pairs = zip(predictions, references, strict=True)
    return sum(is_match(prediction, reference) for prediction, reference in pairs) / len(predictions)


def is_match(prediction: str, reference: str | Sequence[str]) -> bool:
    """Whether one text equals its reference, or one of several."""
    accepted = [reference] if isinstance(reference, str) else reference
    return prediction.strip() in [text.strip() for text in accepted]


Metric = wrapped(exact_match, reads="texts")
