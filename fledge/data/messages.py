"""Rows that hold a conversation as it is: `{"messages": [{"role": ..., "content": ...}, ...]}`."""

from collections.abc import Mapping
from typing import Any

EXPECTS = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'

Message = dict[str, str]


def claims(values: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return "messages" in values


def to_messages(values: Mapping[str, Any]) -> list[Message]:
    """The conversation in a row.

    Raises:
        ValueError: it can't be trained on; says why.
    """
    return checked(values["messages"])


def checked(messages: Any) -> list[Message]:
    """Messages that can be trained on: a system message perhaps, then user and assistant in turns, assistant last.

    Raises:
        ValueError: they are not such; says which message is wrong.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("no list of messages")
    turns = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} has no role (system, user, assistant)")
        role, content = message["role"], message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"message {number} ({role}) has no text in 'content'")
        if not content.strip() and role != "system":
            raise ValueError(f"message {number} ({role}) is empty")
        turns.append({"role": role, "content": content})
    check_roles([turn["role"] for turn in turns])
    return turns


def check_roles(roles: list[str]) -> None:
    """Make sure that roles are in order and the last word is the assistant's.

    Raises:
        ValueError: they are not.
    """
    first = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[first:], first):
        expected = ("user", "assistant")[(number - first) % 2]
        if role != expected:
            raise ValueError(f"roles out of order: message {number + 1} is of '{role}', expected '{expected}'")
    if roles[-1] != "assistant":
        raise ValueError(f"the conversation ends with the {roles[-1]}; nothing to learn after that")
