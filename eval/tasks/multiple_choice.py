"""Multiple choice by log-likelihood: which continuation of the question is the likeliest?

`accuracy` compares whole choices, `accuracy_normalised` nats a character (lm-evaluation-harness's acc and acc_norm).
"""

from collections.abc import Sequence

from eval.asked import context_of
from eval.config import TaskConfig
from eval.items import Answer, Item, LogLikelihood, commonest, mean_over_sets
from fledge.data.rows import Row
from fledge.errors import DataError

FIELDS = ("query", "choices", "gold")


def item(row: Row, task: TaskConfig) -> Item:
    """One request for each choice, all behind the same question.

    Raises:
        DataError: the choices are no list of texts, or gold is none of them.
    """
    choices = row.values["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError(f"{row.where}: 'choices' must be a list of two texts or more, none of them empty")
    gold = gold_of(row, len(choices), choices)
    context, delimiter = context_of(row, task, str(row.values["query"]))
    requests = tuple(LogLikelihood(context, delimiter + choice) for choice in choices)
    facts = {"gold": gold, "lengths": [len(choice) for choice in choices]}
    return Item(row, requests, row.source, str(row.values["query"]), facts)


def gold_of(row: Row, num_choices: int, choices: Sequence[str] = ()) -> int:
    """The place of the right choice, counted from 0; it may be given as its text or as a digit.

    Raises:
        DataError: it is none of them.
    """
    gold = row.values["gold"]
    if isinstance(gold, str) and gold in choices:
        return list(choices).index(gold)
    if str(gold).isdigit() and int(gold) < num_choices:
        return int(gold)
    raise DataError(f"{row.where}: 'gold' is {gold!r}; expected 0 to {num_choices - 1}, counted from 0")


def score(item: Item, answers: Sequence[Answer]) -> dict[str, float]:
    """Whether the right choice is the likeliest; of equal ones the first counts."""
    plain, normalised = _values(item, answers)
    gold = item.facts["gold"]
    return {
        "accuracy": float(plain.index(max(plain)) == gold),
        "accuracy_normalised": float(normalised.index(max(normalised)) == gold),
    }


def margin(item: Item, answers: Sequence[Answer]) -> float:
    """By how many nats the likeliest choice leads, in the closer of both ways to compare."""
    leads = []
    for values, scale in zip(_values(item, answers), (1, min(item.facts["lengths"])), strict=True):
        first, second = sorted(values, reverse=True)[:2]
        leads.append((first - second) * scale)
    return min(leads)


def _values(item: Item, answers: Sequence[Answer]) -> tuple[list[float], list[float]]:
    nats = [float(answer.nats) for answer in answers]
    return nats, [value / length for value, length in zip(nats, item.facts["lengths"], strict=True)]


def baselines(items: Sequence[Item]) -> dict[str, float]:
    """The better of chance and of always the same place."""
    return dict.fromkeys(("accuracy", "accuracy_normalised"), blind(items))


def blind(items: Sequence[Item]) -> float:
    """The accuracy of who does not read the choices: chance, or always the same place where that is better."""
    chance = mean_over_sets(items, [1 / len(item.requests) for item in items])
    return max(chance, commonest(items, [item.facts["gold"] for item in items]))
