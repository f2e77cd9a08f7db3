"""1 where an answer comes to the number of the row's `answer` (or `truth`), such as GSM8K's `#### 72`, else 0."""

from collections.abc import Sequence
from typing import Any

from eval.checks import gsm8k


def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    """One reward an answer."""
    return [gsm8k.check(row, answer) for row, answer in zip(rows, answers, strict=True)]
