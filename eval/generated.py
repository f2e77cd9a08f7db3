"""What all tasks with generated answers share: prompts, requests, and what is told beside every score."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.asked import worded
from eval.config import TaskConfig
from eval.intervals import Estimate, student
from eval.items import Generated, Generation, Item, Ratio, mean_over_sets
from eval.metrics.distinct_n import distinct_n
from fledge.data import prompts
from fledge.data.prompts import Prompt
from fledge.data.rows import Row
from fledge.errors import DataError

_GROUPS = 20  # of the jackknife: enough for an interval, few enough for metrics that take a second


def prompt_of(row: Row, task: TaskConfig) -> Prompt:
    """What a row asks: made by the task's `prompt`, or as `fledge.data.prompts` reads it; the task may rename fields.

    Raises:
        DataError: the row has no prompt, or lacks a field.
    """
    values = dict(row.values)
    try:
        values |= {name: row.values[own] for name, own in task.fields.items()}
        if task.prompt is not None:
            reference = values.get("reference", values.get("answer"))
            made = [{"role": "user", "content": worded(task.prompt, values, row)}]
            return Prompt(made, None if reference is None else str(reference))
        return prompts.of_row(values)
    except KeyError as error:
        known = ", ".join(map(str, row.values)) or "none"
        raise DataError(f"{row.where}: no field {error}, which the task names; it has {known}") from None
    except ValueError as error:
        raise DataError(f"{row.where}: {error}") from None


def request(prompt: Prompt, task: TaskConfig) -> Generation:
    """The request for an answer to a prompt: a conversation where the task says `chat`, else a text to continue."""
    asked: Any = prompt.messages if task.chat else text_of(prompt)
    return Generation(asked, task.max_new_tokens, tuple(task.stop))


def text_of(prompt: Prompt) -> str:
    """The prompt as plain text."""
    return "\n\n".join(message["content"] for message in prompt.messages)


def beside(answer: Generated) -> dict[str, float]:
    """Told of every generated answer: whether it stopped by itself, and its tokens."""
    return {"stopped": float(answer.has_stopped), "answer_tokens": float(answer.num_tokens)}


def variety(answers: Sequence[Sequence[Generated]]) -> dict[str, Estimate]:
    """Told of all generated answers together: the share of different pairs of words."""
    return {"distinct_2": pooled_estimate(distinct_n, [answer[0].text for answer in answers], is_share=True)}


def best_copies(items: Sequence[Item], score: Callable[[Item, str], Mapping[str, float | Ratio]]) -> dict[str, float]:
    """The baselines of generated answers: the better, in each metric, of no answer and of the prompt repeated."""
    best: dict[str, float] = {}
    for copied in (False, True):
        scores = [score(item, item.facts["prompt"] if copied else "") for item in items]
        for name in dict.fromkeys(name for values in scores for name in values):
            having = [(item, values[name]) for item, values in zip(items, scores, strict=True) if name in values]
            best[name] = max(best.get(name, 0.0), mean_over_sets(*zip(*having, strict=True)))
    return best


def pooled_estimate(metric: Callable[..., Any], *columns: Sequence[Any], is_share: bool = False) -> Estimate:
    """A metric that is no mean over answers, with the interval of the delete-a-group jackknife.

    Args:
        columns: predictions and, where the metric takes them, references; their rows are independent.
        is_share: the metric, and so its interval, is in [0, 1].
    Source: Kott 2001, the delete-a-group jackknife; Student's t with groups - 1 degrees of freedom.
    """
    n = len(columns[0])
    value, groups = _number(metric(*columns)), min(_GROUPS, n)
    if groups < 2:
        return Estimate(value, -np.inf, np.inf, n)
    left_out = [
        _number(metric(*([x for i, x in enumerate(column) if i % groups != group] for column in columns)))
        for group in range(groups)
    ]
    mean = float(np.mean(left_out))
    half, _ = student(value, [((groups - 1) / groups * sum((v - mean) ** 2 for v in left_out), groups - 1)])
    least, most = (0.0, 1.0) if is_share else (-np.inf, np.inf)
    return Estimate(value, max(least, value - half), min(most, value + half), n)


def _number(result: Any) -> float:
    """The figure of a metric; of the hub's dictionaries the first."""
    return float(next(iter(result.values())) if isinstance(result, Mapping) else result)
