"""Answers to questions about the built-in village and to its small tasks."""

from typing import Any

from fledge.errors import DataError
from fledge.village import instructions


def check(row: dict[str, Any], answer: str) -> float:
    """1 where an answer to a row of `village:WORLD/instructions` is right, else 0.

    Raises:
        DataError: the row is none of these.
    """
    if missing := {"task", "truth", "given", "world", "attribute"} - set(row):
        raise DataError(f"no row of the village's instructions: it has no {', '.join(sorted(missing))}")
    return float(instructions.check(row, answer))
