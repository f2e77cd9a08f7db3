"""Minimal pairs, such as BLiMP's: is the good sentence likelier than the bad one?

`accuracy` counts a tie as half; `accuracy_lm_eval` as lm-evaluation-harness does, which takes the first of two equal
choices, and that is the good one.
"""

from collections.abc import Sequence

from eval.config import TaskConfig
from eval.items import Answer, Item, LogLikelihood
from fledge.data.rows import Row
from fledge.errors import DataError

FIELDS = ("sentence_good", "sentence_bad")

TIE_NATS = 1e-5  # float32 gives the same sum with about this error when it is computed in two ways


def item(row: Row, task: TaskConfig) -> Item:
    """Both sentences, each as a document's beginning.

    Raises:
        DataError: one is no text, or empty.
    """
    sentences = [row.values[name] for name in FIELDS]
    if not all(isinstance(sentence, str) and sentence for sentence in sentences):
        raise DataError(f"{row.where}: both sentences must be texts, none of them empty")
    requests = tuple(LogLikelihood("", task.delimiter + sentence) for sentence in sentences)
    return Item(row, requests, str(row.values.get("UID", row.source)))


def score(item: Item, answers: Sequence[Answer]) -> dict[str, float]:
    """Whether the good sentence wins."""
    lead = margin(item, answers)
    is_tie = abs(lead) <= TIE_NATS
    return {"accuracy": 0.5 if is_tie else float(lead > 0), "accuracy_lm_eval": float(is_tie or lead > 0)}


def margin(item: Item, answers: Sequence[Answer]) -> float:
    """By how many nats the good sentence is likelier."""
    good, bad = answers
    return float(good.nats - bad.nats)


def baselines(items: Sequence[Item]) -> dict[str, float]:
    """Chance."""
    return {"accuracy": 0.5, "accuracy_lm_eval": 0.5}
