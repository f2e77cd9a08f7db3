"""How much of a reference's order of words an answer keeps."""

import functools
from collections.abc import Sequence
from typing import Any

from eval.metric_module import wrapped


def rouge_l(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Mean ROUGE-L F1 in 0-1: of several references the best one.

    Source: Lin 2004, computed by rouge-score (Porter stemming, lower case, letters and digits only).
    """
    pairs = zip(predictions, references, strict=True)
    return sum(of_one(prediction, reference) for prediction, reference in pairs) / len(predictions)


def of_one(prediction: str, reference: str | Sequence[str]) -> float:
    """ROUGE-L F1 of one text."""
    accepted = [reference] if isinstance(reference, str) else list(reference)
    return float(_scorer().score_multi(accepted, prediction)["rougeL"].fmeasure)


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


Metric = wrapped(rouge_l, reads="texts")
