"""The context of a request for likelihoods: a row's question, as the task words it."""

from collections.abc import Mapping

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
    text = question
    if task.prompt is not None:
        try:
            text = task.prompt.format_map(row.values)
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(map(str, row.values))
            raise DataError(f"{row.where}: 'prompt' asks for {error}; the row has {known}") from None
    if task.chat:  # the template ends with the start of an answer, which needs no space
        return ({"role": "user", "content": text},), ""
    return text, task.delimiter
