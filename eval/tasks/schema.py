"""Schemas, such as Winograd's: the same continuation behind two contexts; which context makes it likelier?

Only the continuation is scored (Trinh and Le 2018, arXiv 1806.02847, their partial scoring).
"""

from collections.abc import Sequence

from eval.config import TaskConfig
from eval.items import Answer, Item, LogLikelihood
from eval.tasks.multiple_choice import blind, gold_of
from fledge.data.rows import Row
from fledge.errors import DataError

FIELDS = ("context_options", "continuation", "gold")


def item(row: Row, task: TaskConfig) -> Item:
    """The continuation behind each context.

    Raises:
        DataError: the contexts are no list of texts, or gold is none of them.
    """
    contexts, continuation = row.values["context_options"], str(row.values["continuation"])
    if not isinstance(contexts, list) or len(contexts) < 2 or not all(isinstance(c, str) for c in contexts):
        raise DataError(f"{row.where}: 'context_options' must be a list of two texts or more")
    requests = tuple(LogLikelihood(context, task.delimiter + continuation) for context in contexts)
    # The two halves of a schema share their contexts and turn the answer round.
    return Item(row, requests, row.source, contexts[0], {"gold": gold_of(row, len(contexts))})


def score(item: Item, answers: Sequence[Answer]) -> dict[str, float]:
    """Whether the right context makes it the likeliest."""
    nats = [answer.nats for answer in answers]
    return {"accuracy": float(nats.index(max(nats)) == item.facts["gold"])}


def margin(item: Item, answers: Sequence[Answer]) -> float:
    """By how many nats the best context leads."""
    first, second = sorted((float(answer.nats) for answer in answers), reverse=True)[:2]
    return first - second


def baselines(items: Sequence[Item]) -> dict[str, float]:
    """The better of chance and of always the same place."""
    return {"accuracy": blind(items)}
