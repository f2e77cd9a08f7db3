"""What a row asks, and the answer that it has for it, if any: for generation, evaluation and rewards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fledge.data import conversations
from fledge.data.alpaca import prompt_of
from fledge.data.messages import Message
from fledge.data.sharegpt import message_of

EXPECTS = '"prompt", "messages", "question" or "instruction" (with "input"), or a conversation with its answer'


@dataclass(frozen=True)
class Prompt:
    """What is asked, oldest message first, and the answer in the data; None if it has none."""

    messages: list[Message]
    reference: str | None

    @property
    def plain(self) -> str | list[Message]:
        """The text alone where a user's message is all there is, else the messages."""
        is_plain = len(self.messages) == 1 and self.messages[0]["role"] == "user"
        return self.messages[0]["content"] if is_plain else self.messages


def of_row(values: Mapping[str, Any]) -> Prompt:
    """The prompt in a row of any known format, or in its `prompt`, `messages`, `instruction` or `question` alone.

    An instruction's input stands in `input`, or in the first of `instances`.
    Raises:
        ValueError: there is none; says what was expected.
    """
    messages = values.get("messages", values.get("prompt"))
    if isinstance(messages, list) and messages and not _is_answered(values, messages):
        return Prompt([message_of(message) for message in messages], None)
    for module in conversations.formats().values():
        if module.claims(values):
            whole = module.to_messages(values)
            return Prompt(whole[:-1], whole[-1]["content"])
    instances = values.get("instances") or [{}]
    if not isinstance(instances, list) or not isinstance(instances[0], Mapping):
        raise ValueError("'instances' is no list of objects with 'input' and 'output'")
    if isinstance(values.get("instruction"), str):
        text = prompt_of(values["instruction"], values.get("input") or instances[0].get("input"))
        return _asked(text, instances[0].get("output"))
    if isinstance(values.get("prompt"), str):
        return _asked(values["prompt"], None)
    if isinstance(values.get("question"), str):
        return _asked(values["question"], values.get("answer"))
    raise ValueError(f"expected {EXPECTS}; fields: {', '.join(map(str, values)) or 'none'}")


def _is_answered(values: Mapping[str, Any], messages: list[Any]) -> bool:
    """Whether a list of messages ends with an answer, or has it in a field beside."""
    last = messages[-1]
    ends_with_answer = isinstance(last, Mapping) and last.get("role") == "assistant"
    return ends_with_answer or "completion" in values or "response" in values


def _asked(text: str, reference: Any) -> Prompt:
    if not text.strip():
        raise ValueError("the prompt is empty")
    return Prompt([{"role": "user", "content": text}], reference if isinstance(reference, str) else None)
