"""The share of the instructions in a row (`instruction_id_list`, `kwargs`) that an answer follows strictly."""

from collections.abc import Sequence
from typing import Any

from eval.checks import ifeval


def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    """One reward an answer."""
    return [ifeval.check(row, answer) for row, answer in zip(rows, answers, strict=True)]
