"""Answers that come to a number, as GSM8K's `#### 72`."""

import re
from decimal import Decimal
from typing import Any

from fledge.errors import DataError

# A minus behind a digit or bracket subtracts; it is no sign.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
MARK = "####"


def check(row: dict[str, Any], answer: str) -> float:
    """1 where an answer comes to the number that the row's `answer` (or `truth`) comes to, else 0.

    Raises:
        DataError: the row has no such field, or no number in it.
    """
    truth = final_number(str(row.get("answer", row.get("truth", ""))))
    if truth is None:
        raise DataError("expected a number in 'answer' (or 'truth'), such as #### 72")
    return float(final_number(answer) == truth)


def final_number(text: str) -> Decimal | None:
    """The number that a text comes to: the first behind its last `####`, or the last one in it; None if none.

    Commas mark thousands; currency signs, units and full stops around a number do not count.
    """
    _, mark, after = text.rpartition(MARK)
    found = _NUMBER.findall(after)[:1] if mark else _NUMBER.findall(text)[-1:]
    return Decimal(found[0].replace(",", "")) if found else None


def first_number(text: str) -> Decimal | None:
    """The first number in a text; None if there is none."""
    found = _NUMBER.search(text)
    return Decimal(found[0].replace(",", "")) if found else None
