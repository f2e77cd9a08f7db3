"""Conversations to token ids, with a mask of what is learned.

The chat template decides the text; what people typed into it stays plain text, whatever it looks like: only
markers that the template itself wrote become special ids. On ordinary conversations the ids are those of
transformers' `apply_chat_template`.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fledge.errors import DataError, ModelError
from fledge.tokens import TextTokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as ids; `is_supervised[i]`: the loss falls on id i."""

    ids: list[int]
    is_supervised: list[bool]


def render(tokenizer: TextTokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> RenderedChat:
    """Render messages with the tokenizer's chat template.

    Args:
        messages: `{"role": ..., "content": ...}`, oldest first.
        add_generation_prompt: end with the start of an assistant's turn.
    Raises:
        ModelError: there is no chat template, or it is broken.
        DataError: the messages are not such, or the template refuses them.
    """
    if tokenizer.chat_template is None:
        raise ModelError("the tokenizer has no chat template; it was not made for conversations")
    check_messages(messages)
    marks = _unused_marks(messages)
    escaped = _escape(messages, tokenizer, marks)
    rendered = _render_text(tokenizer, escaped, add_generation_prompt, marks)
    ids: list[int] = []
    is_supervised: list[bool] = []
    for text, learned in _segments(rendered, tokenizer, marks):
        if isinstance(text, int):
            ids.append(text)
            is_supervised.append(learned[0][0] < learned[0][1] if learned else False)
        else:
            numbers, offsets = tokenizer.encode_with_offsets(text)
            ids += numbers
            is_supervised += [any(start < end_ and start_ < end for start_, end_ in learned) for start, end in offsets]
    return RenderedChat(ids, is_supervised)


def check_messages(messages: Sequence[Message]) -> None:
    """Make sure that these are messages.

    Raises:
        DataError: no messages, or one without a role or text.
    """
    if not isinstance(messages, Sequence) or not messages:
        raise DataError('no messages; expected [{"role": "user", "content": "..."}, ...]')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"message {number} has no role (user, assistant, system)")
        if not isinstance(message.get("content"), str):
            raise DataError(f"message {number} ({message['role']}) has no text in 'content'")


def has_generation_blocks(chat_template: str) -> bool:
    """Whether a template says which of its text an assistant wrote."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", chat_template) is not None


# --- marks: characters that stand for what must not be confused with text ---


@dataclass(frozen=True)
class _Marks:
    """Four characters that occur nowhere in the conversation."""

    begin: str  # of a stretch that is learned
    end: str
    open: str  # around the number of an escaped special token
    close: str


def _unused_marks(messages: Sequence[Message]) -> _Marks:
    used = set(json.dumps(messages, ensure_ascii=False, default=str))
    free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
    return _Marks(*(next(free) for _ in range(4)))


def _escape(value: Any, tokenizer: TextTokenizer, marks: _Marks) -> Any:
    """Special tokens within what people typed, replaced by their numbers between marks."""
    if isinstance(value, str):
        return _special_pattern(tokenizer).sub(
            lambda found: f"{marks.open}{tokenizer.special_ids[found[0]]}{marks.close}", value
        )
    if isinstance(value, Mapping):
        return {key: _escape(inner, tokenizer, marks) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_escape(inner, tokenizer, marks) for inner in value]
    return value


def _unescape(text: str, tokenizer: TextTokenizer, marks: _Marks) -> str:
    names = {number: name for name, number in tokenizer.special_ids.items()}
    return re.sub(f"{marks.open}(\\d+){marks.close}", lambda found: names[int(found[1])], text)


def _special_pattern(tokenizer: TextTokenizer) -> re.Pattern[str]:
    names = sorted(tokenizer.special_ids, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _segments(
    rendered: str, tokenizer: TextTokenizer, marks: _Marks
) -> Iterator[tuple[str | int, list[tuple[int, int]]]]:
    """The rendered text cut at the template's special tokens: plain texts and ids.

    With each comes which of its characters [start, end) are learned; (0, 1) for an id that is learned.
    """
    pattern = re.compile(f"({_special_pattern(tokenizer).pattern})")
    learning = False
    for number, part in enumerate(pattern.split(rendered)):
        if number % 2:
            yield tokenizer.special_ids[part], [(0, 1)] if learning else []
            continue
        text, learned, start = "", [], 0
        for stretch in re.split(f"([{marks.begin}{marks.end}])", part):
            if stretch in (marks.begin, marks.end):
                if learning and stretch == marks.end and start < len(text):
                    learned.append((start, len(text)))
                learning, start = stretch == marks.begin, len(text)
            else:
                text += _unescape(stretch, tokenizer, marks)
        if learning and start < len(text):
            learned.append((start, len(text)))
        if text:
            yield text, learned


# --- the template ---


class _GenerationBlocks(Extension):
    """`{% generation %} ... {% endgeneration %}`: puts marks around what it holds."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        marks: Any = self.environment.globals["_marks"]
        return f"{marks.begin}{caller()}{marks.end}"


def _render_text(tokenizer: TextTokenizer, messages: Any, add_generation_prompt: bool, marks: _Marks) -> str:
    template, environment = _compiled(str(tokenizer.chat_template))
    environment.globals["_marks"] = marks
    try:
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **tokenizer.roles)
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template refuses these messages: {error}") from None


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[jinja2.Template, ImmutableSandboxedEnvironment]:
    """A compiled template, with what transformers offers to templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(source), environment
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template is broken: {error}") from None


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
