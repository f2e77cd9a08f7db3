"""Rows of a prompt and what follows: `{"prompt": ..., "completion": ...}`; also `response`, and messages as prompt."""

import re
from collections.abc import Mapping
from typing import Any

from fledge.data.alpaca import prompt_of
from fledge.data.messages import Message, checked

EXPECTS = '{"prompt": "...", "completion": "..."} (or "response" for "completion")'

# Stanford's wrapper; the chat template takes its place.
_WRAPPED = re.compile(
    r"Below is an instruction.*?### Instruction:\n(.*?)(?:\n\n### Input:\n(.*?))?\n\n### Response:\s*", re.DOTALL
)


def claims(values: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return "prompt" in values and ("completion" in values or "response" in values)


def to_messages(values: Mapping[str, Any]) -> list[Message]:
    """The conversation in a row; Alpaca's wrapper around a prompt is taken off.

    Raises:
        ValueError: it can't be trained on; says why.
    """
    name = "completion" if "completion" in values else "response"
    prompt, answer = values["prompt"], values[name]
    if isinstance(prompt, str):
        wrapped = _WRAPPED.fullmatch(prompt)
        content = prompt_of(wrapped[1], wrapped[2]) if wrapped else prompt.strip()
        prompt = [{"role": "user", "content": content}]
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer.strip()}]
    if not isinstance(prompt, list) or not isinstance(answer, list):
        raise ValueError(f"'prompt' or '{name}' is no text")
    return checked(prompt + answer)
