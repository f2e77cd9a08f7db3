"""How varied a set of texts is."""

from collections.abc import Sequence

from eval.metric_module import wrapped


def distinct_n(predictions: Sequence[str], references: Sequence[str] | None = None, n: int = 2) -> float:
    """The share of different word n-grams among all in the predictions; 0 where there is none.

    Source: Li et al. 2016 (arXiv 1510.03055). It falls as there is more text: compare equal amounts only.
    """
    found = [
        tuple(words[start : start + n])
        for words in (text.split() for text in predictions)
        for start in range(len(words) - n + 1)
    ]
    return len(set(found)) / len(found) if found else 0.0


Metric = wrapped(distinct_n, reads="texts")
