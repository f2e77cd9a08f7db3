"""The village's gold reward: a right answer 2, a polite phrase 1, a rude one -1, 0.1 less for each word past twelve."""

from collections.abc import Sequence
from typing import Any

from eval.checks import village
from fledge.village import preferences


def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    """One reward an answer, for rows of `village:WORLD/instructions` or `village:WORLD/preferences`.

    Raises:
        DataError: a row is none of these.
    """
    for row in rows:
        village.require(row)
    return preferences.score(list(rows), list(answers))
