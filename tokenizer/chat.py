"""Conversations to token ids, with a mask of what is learned.

The chat template decides the text; what people typed into it stays plain text, whatever it looks like: only
markers that the template itself wrote become special ids. Where nobody typed such markers, the ids are those of
transformers' `apply_chat_template`.
"""

import bisect
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fledge.errors import DataError, ModelError, first_line
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
    written = _read(_render_text(tokenizer, escaped, add_generation_prompt, marks), tokenizer, marks)
    ids, offsets = _encode(written, tokenizer)
    ends = [end for _, end in written.learned]
    # The first learned stretch that ends behind where an id begins, and whether that id reaches it.
    nearest = [(bisect.bisect_right(ends, start), end) for start, end in offsets]
    return RenderedChat(ids, [place < len(ends) and written.learned[place][0] < end for place, end in nearest])


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


def _special_pattern(tokenizer: TextTokenizer) -> re.Pattern[str]:
    names = sorted(tokenizer.special_ids, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


@dataclass(frozen=True)
class _Written:
    """A rendered text without marks, and stretches [start, end) of its characters, in order."""

    text: str
    learned: list[tuple[int, int]]
    special: list[tuple[int, int]]  # the template's own special tokens
    has_typed: bool  # what people typed looks like special tokens


def _read(rendered: str, tokenizer: TextTokenizer, marks: _Marks) -> _Written:
    names = {number: name for name, number in tokenizer.special_ids.items()}
    special_name = _special_pattern(tokenizer).pattern
    pattern = re.compile(f"([{marks.begin}{marks.end}])|{marks.open}(\\d+){marks.close}|({special_name})")
    text, learned, special, has_typed, begin, read = "", [], [], False, 0, 0
    for found in pattern.finditer(rendered):
        mark, typed, name = found.groups()
        text += rendered[read : found.start()]
        read = found.end()
        if mark == marks.begin:
            begin = len(text)
        elif mark and begin < len(text):
            learned.append((begin, len(text)))
        elif typed:
            text += names[int(typed)]
            has_typed = True
        elif name:
            special.append((len(text), len(text) + len(name)))
            text += name
    return _Written(text + rendered[read:], learned, special, has_typed)


def _encode(written: _Written, tokenizer: TextTokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and the characters [start, end) of each, in which only the template's own special tokens are special."""
    ids, offsets = tokenizer.encode_with_offsets(written.text, with_special=True)
    # Characters that the vocabulary lacks become the unknown token, which is special, too.
    numbers = {number for name, number in tokenizer.special_ids.items() if name != tokenizer.roles.get("unk_token")}
    if not written.has_typed and sum(number in numbers for number in ids) == len(written.special):
        own = iter(written.special)  # without the spaces around, which such an id may cover, too
        return ids, [next(own) if number in numbers else place for number, place in zip(ids, offsets, strict=True)]
    ids, offsets, read = [], [], 0  # each stretch between the template's own alone, as plain text
    for start, end in [*written.special, (len(written.text), None)]:
        plain, places = tokenizer.encode_with_offsets(written.text[read:start])
        ids += plain
        offsets += [(read + first, read + last) for first, last in places]
        if end is not None:
            ids.append(tokenizer.special_ids[written.text[start:end]])
            offsets.append((start, end))
            read = end
    return ids, offsets


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
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.roles,
        )
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template refuses these messages: {error}") from None
    except Exception as error:  # templates are programs
        raise ModelError(f"the chat template is broken: {first_line(error)}") from None


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[jinja2.Template, ImmutableSandboxedEnvironment]:
    """A compiled template, with what transformers offers to templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(source), environment
    except (jinja2.TemplateError, RecursionError) as error:
        raise ModelError(f"the chat template is broken: {error}") from None


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' filter: unlike Jinja's own it leaves <, > and & as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
