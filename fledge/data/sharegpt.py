"""Rows of a conversation as ShareGPT writes it: `{"conversations": [{"from": "human", "value": ...}, ...]}`."""

from collections.abc import Mapping
from typing import Any

from fledge.data.messages import Message, checked

EXPECTS = '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def message_of(turn: Any) -> Message:
    """The message in `{"from": ..., "value": ...}`, or in `{"role": ..., "content": ...}`, whoever it is of.

    Raises:
        ValueError: it is neither.
    """
    fields = turn if isinstance(turn, Mapping) else {}
    role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("a message has no role or no text in 'content'")
    return {"role": ROLES.get(role, role), "content": content}


def claims(values: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return "conversations" in values


def to_messages(values: Mapping[str, Any]) -> list[Message]:
    """The conversation in a row; a field `system` beside it comes first.

    Raises:
        ValueError: it can't be trained on; says why.
    """
    turns = values["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError("'conversations' is no list of turns")
    for number, turn in enumerate(turns, 1):
        if str(turn.get("from")) not in ROLES:
            raise ValueError(f"turn {number} is from {turn.get('from')!r}; known: {', '.join(ROLES)}")
    messages = [{"role": ROLES[turn["from"]], "content": turn.get("value")} for turn in turns]
    if values.get("system"):
        messages.insert(0, {"role": "system", "content": values["system"]})
    return checked(messages)
