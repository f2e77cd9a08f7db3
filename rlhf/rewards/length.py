"""`length:N`: 1 for an answer of N words, falling evenly to 0 for one without words and for one of 2 N or more."""

from collections.abc import Callable, Sequence
from typing import Any

from fledge.errors import DataError

USAGE = "length:20 rewards answers of 20 words"


def make(argument: str, device: str) -> Callable[[Sequence[dict[str, Any]], Sequence[str]], list[float]]:
    """A reward for answers of so many words.

    Raises:
        DataError: the argument is no number above 0.
    """
    if not argument.isdecimal() or not int(argument):
        raise DataError(f"--reward length:{argument}: expected a number of words; {USAGE}")
    wanted = int(argument)

    def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
        return [max(0.0, 1 - abs(len(answer.split()) - wanted) / wanted) for answer in answers]

    return score
