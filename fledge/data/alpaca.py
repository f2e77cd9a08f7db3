"""Rows of an instruction, perhaps an input, and an answer, as in Stanford's Alpaca."""

from collections.abc import Mapping
from typing import Any

from fledge.data.messages import Message, checked

EXPECTS = '{"instruction": "...", "input": "...", "output": "..."} (or "response" for "output")'


def claims(values: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return "instruction" in values and ("output" in values or "response" in values)


def to_messages(values: Mapping[str, Any]) -> list[Message]:
    """The conversation in a row: instruction, an empty line and the input; then the answer.

    Raises:
        ValueError: it can't be trained on; says why.
    """
    answer = "output" if "output" in values else "response"
    for name in ("instruction", answer):
        if not isinstance(values[name], str) or not values[name].strip():
            raise ValueError(f"'{name}' is empty or no text")
    return checked(
        [
            {"role": "user", "content": prompt_of(values["instruction"], values.get("input"))},
            {"role": "assistant", "content": values[answer]},
        ]
    )


def prompt_of(instruction: str, text: Any) -> str:
    """What the user says: the instruction, and below it what it is about."""
    return f"{instruction}\n\n{text}" if isinstance(text, str) and text.strip() else instruction
