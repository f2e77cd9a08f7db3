"""Answers to questions about the built-in village and to its small tasks."""

from typing import Any

from fledge.errors import DataError
from fledge.village import instructions


def check(row: dict[str, Any], answer: str) -> float:
    """1 where an answer to a row of `village:WORLD/instructions` is right, else 0.

    Raises:
        DataError: the row is none of these.
    """
    require(row)
    return float(instructions.check(row, answer))


def require(row: dict[str, Any]) -> None:
    """Make sure that a row is one of `village:WORLD/instructions` or `village:WORLD/preferences`.

    Raises:
        DataError: it is not.
    """
    if missing := {"task", "truth", "given", "world", "attribute"} - set(row):
        raise DataError(f"no row of the village's instructions: it has no {', '.join(sorted(missing))}")


def scores(row: dict[str, Any], answer: str) -> dict[str, float]:
    """The verdict, also apart for questions on lasting facts and for tasks on the text at hand."""
    right = check(row, answer)
    return {"right": right, "right_facts" if row["task"] == "fact" else "right_tasks": right}


def cluster(row: dict[str, Any]) -> str:
    """Questions on one fact stand or fall together."""
    return f"{row['person']}/{row['attribute']}" if row["task"] == "fact" else str(row["messages"][0]["content"])
