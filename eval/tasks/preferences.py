"""Preferences by log-likelihood: does the model find the chosen answer likelier than the rejected one?

`accuracy` compares whole answers, which favours short ones; `accuracy_normalised` nats a character. Rows have a prompt
and two answers, or two dialogues in hh-rlhf's text (`Human:`, `Assistant:`) that differ in their last answer.
"""

import re
from collections.abc import Sequence

from eval.asked import Context, context_of
from eval.config import TaskConfig
from eval.items import Answer, Item, LogLikelihood
from eval.tasks.minimal_pairs import TIE_NATS
from fledge.data.rows import Row
from fledge.errors import DataError

FIELDS = ("chosen", "rejected")

_TURN = re.compile(r"\n\n(Human|Assistant):")


def item(row: Row, task: TaskConfig) -> Item:
    """Both answers behind the prompt.

    Raises:
        DataError: prompt or answers are no text, or an answer is empty.
    """
    own = task.fields.get("prompt", "prompt")
    texts = [row.values[name] for name in ([own] if own in row.values else []) + list(FIELDS)]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{row.where}: 'prompt', 'chosen' and 'rejected' must be texts, none of them empty")
    if len(texts) == 2:
        prompt, context, answers = _of_dialogues(row, task, *texts)
        delimiter = ""
    else:
        prompt, *answers = texts
        context, delimiter = context_of(row, task, prompt)
    requests = tuple(LogLikelihood(context, delimiter + answer) for answer in answers)
    return Item(row, requests, row.source, prompt, {"lengths": [len(answer) for answer in answers]})


def _of_dialogues(row: Row, task: TaskConfig, chosen: str, rejected: str) -> tuple[str, Context, list[str]]:
    """What two dialogues begin with, as text and as the context of both answers, and the answers."""
    parts = [_TURN.split(text) for text in (chosen, rejected)]
    before, roles, said = parts[0][:-1], parts[0][1::2], parts[0][2:-1:2]
    answers = [part[-1].strip() for part in parts]
    if before != parts[1][:-1] or roles[:1] + roles[-1:] != ["Human", "Assistant"] or not all(answers):
        raise DataError(
            f"{row.where}: no field 'prompt', and 'chosen' and 'rejected' are no dialogues "
            "(Human:, Assistant:) that differ in their last answer only"
        )
    prompt = chosen[: -len(parts[0][-1]) or None]
    if not task.chat:
        return prompt, prompt, [f" {answer}" for answer in answers]
    names = {"Human": "user", "Assistant": "assistant"}
    messages = [{"role": names[role], "content": text.strip()} for role, text in zip(roles, said, strict=False)]
    return prompt, tuple(messages), answers


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
    longer = sum((a > b) + (a == b) / 2 for a, b in (item.facts["lengths"] for item in items)) / len(items)
    return dict.fromkeys(("accuracy", "accuracy_normalised"), max(0.5, longer, 1 - longer))
