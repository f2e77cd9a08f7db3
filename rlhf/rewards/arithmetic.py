"""1 where the first number of an answer is that of the row's `continuation` (or `answer`), else 0."""

from collections.abc import Sequence
from typing import Any

from eval.checks import arithmetic


def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    """One reward an answer."""
    return [arithmetic.check(row, answer) for row, answer in zip(rows, answers, strict=True)]
