"""Sums such as `95+223=`, continued by a model that may go on talking."""

from typing import Any

from eval.checks.gsm8k import first_number
from fledge.errors import DataError


def check(row: dict[str, Any], answer: str) -> float:
    """1 where the first number of an answer is that of the row's `continuation` (or `answer`), else 0.

    Raises:
        DataError: the row has no such field, or no number in it.
    """
    truth = first_number(str(row.get("continuation", row.get("answer", ""))))
    if truth is None:
        raise DataError("expected a number in 'continuation' (or 'answer')")
    return float(first_number(answer) == truth)
