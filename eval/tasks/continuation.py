"""Exact continuations, such as LAMBADA's last word: would the model itself write what follows?

`accuracy` is lm-evaluation-harness's: every token of the continuation is the likeliest one. `bits_per_byte` is over the
continuations only, and of those that fit into the context.
"""

from collections.abc import Sequence
from math import log

from eval.asked import context_of
from eval.config import TaskConfig
from eval.items import Answer, Item, LogLikelihood, Ratio, commonest
from fledge.data.rows import Row
from fledge.errors import DataError

FIELDS = ("context", "continuation")


def item(row: Row, task: TaskConfig) -> Item:
    """The continuation behind its context.

    Raises:
        DataError: there is nothing to continue with.
    """
    continuation = str(row.values["continuation"])
    if not continuation.strip():
        raise DataError(f"{row.where}: 'continuation' is empty; a reference needs text")
    context, delimiter = context_of(row, task, str(row.values["context"]))
    whole = delimiter + continuation
    facts = {"continuation": continuation, "num_bytes": len(whole.encode())}
    return Item(row, (LogLikelihood(context, whole),), row.source, str(context), facts)


def score(item: Item, answers: Sequence[Answer]) -> dict[str, float | Ratio]:
    """Whether the model would write it, and what it costs."""
    (answer,) = answers
    cost = {"bits_per_byte": Ratio(-answer.nats / log(2), item.facts["num_bytes"])} if answer.is_whole else {}
    return {"accuracy": float(answer.is_greedy), **cost}


def baselines(items: Sequence[Item]) -> dict[str, float]:
    """Always the most frequent continuation."""
    return {"accuracy": commonest(items, [item.facts["continuation"] for item in items]), "bits_per_byte": 8.0}
