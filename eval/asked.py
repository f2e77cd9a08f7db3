"""A row's question, as the task words it."""

from collections.abc import Mapping
from typing import Any

from eval.config import TaskConfig
from fledge.data.rows import Row
from fledge.errors import DataError

Context = str | tuple[Mapping[str, str], ...]  # a text, or messages for the chat template


def context_of(row: Row, task: TaskConfig, question: str) -> tuple[Context, str]:
    """What stands before a continuation, and what between both.

    Args:
        question: the kind's own wording, where the task has no `prompt`.
    Raises:
        DataError: the task's prompt names a field that the row lacks.
    """
    text = question if task.prompt is None else worded(task.prompt, row.values, row)
    if task.chat:  # the template ends with the start of an answer, which needs no space
        return ({"role": "user", "content": text},), ""
    return text, task.delimiter


def worded(prompt: str, values: Mapping[str, Any], row: Row) -> str:
    """A task's prompt with a row's fields in it.

    Raises:
        DataError: it names a field that the row lacks, or is no such text.
    """
    try:
        return prompt.format_map(values)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        known = ", ".join(map(str, row.values))
        wrong = f"asks for {error}" if isinstance(error, KeyError) else f"can't be filled in ({error})"
        raise DataError(f"{row.where}: 'prompt' {wrong}; the row has {known}") from None
