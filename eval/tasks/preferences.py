"""Preferences by log-likelihood: does the model find the chosen answer likelier than the rejected one?

`accuracy` compares whole answers, which favours short ones; `accuracy_normalised` nats a character. Rows are those of
`fledge.data.preferences`.
"""

from collections.abc import Sequence
from dataclasses import replace

from eval.asked import context_of
from eval.config import TaskConfig
from eval.items import Answer, Item, LogLikelihood, mean_over_sets
from eval.tasks.minimal_pairs import TIE_NATS
from fledge.data import preferences
from fledge.data.rows import Row
from fledge.errors import DataError

FIELDS = ("chosen", "rejected")

_NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}


def item(row: Row, task: TaskConfig) -> Item:
    """Both answers behind the prompt.

    Raises:
        DataError: the row is no pair of answers to one prompt.
    """
    asked = row.values.get(task.fields.get("prompt", "prompt"))
    try:
        pair = preferences.of_row(replace(row, values=row.values | ({"prompt": asked} if asked is not None else {})))
    except ValueError as error:
        raise DataError(f"{row.where}: {error}") from None
    if isinstance(asked, str) and len(pair.prompt) == 1:
        context, delimiter = context_of(row, task, asked)
    elif task.chat:
        context, delimiter = tuple(pair.prompt), ""
    else:  # as hh-rlhf writes a dialogue
        turns = (f"\n\n{_NAMES[message['role']]}: {message['content']}" for message in pair.prompt)
        context, delimiter = "".join(turns) + "\n\nAssistant:", " "
    answers = (pair.chosen, pair.rejected)
    requests = tuple(LogLikelihood(context, delimiter + answer) for answer in answers)
    return Item(row, requests, row.source, str(pair.hash), {"lengths": [len(answer) for answer in answers]})


def score(item: Item, answers: Sequence[Answer]) -> dict[str, float]:
    """Whether the chosen answer wins; a tie is half."""
    chosen, rejected = (answer.nats for answer in answers)
    num_chosen, num_rejected = item.facts["lengths"]
    return {
        "accuracy": _won(chosen - rejected),
        "accuracy_normalised": _won((chosen / num_chosen - rejected / num_rejected) * num_chosen),
    }


def _won(lead: float) -> float:
    return 0.5 if abs(lead) <= TIE_NATS else float(lead > 0)


def margin(item: Item, answers: Sequence[Answer]) -> float:
    """By how many nats an answer leads, in the closer of both ways to compare."""
    first, second = (float(answer.nats) for answer in answers)
    num_first, num_second = item.facts["lengths"]
    normalised = (first / num_first - second / num_second) * min(num_first, num_second)
    return min(first - second, normalised, key=abs)


def baselines(items: Sequence[Item]) -> dict[str, float]:
    """The better of chance and of always the longer answer."""
    longer = mean_over_sets(items, [(a > b) + (a == b) / 2 for a, b in (item.facts["lengths"] for item in items)])
    return dict.fromkeys(("accuracy", "accuracy_normalised"), max(0.5, longer, 1 - longer))
