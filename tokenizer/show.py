"""`fledge tokenizer show`: text as tokens, in colour."""

import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from fledge import console
from fledge.data import conversations
from fledge.data import sources as src
from fledge.data.rows import Reject
from fledge.data.text import TextReader
from fledge.errors import DataError
from fledge.tokens import TextTokenizer
from tokenizer.chat import has_generation_blocks, render
from tokenizer.config import ShowConfig

# Backgrounds that take turns, so that token borders show; readable on dark and on light terminals.
_COLOURS = ("\x1b[30;48;5;153m", "\x1b[30;48;5;223m", "\x1b[30;48;5;157m", "\x1b[30;48;5;225m")
_SUPERVISED, _RESET = "\x1b[30;48;5;120m", "\x1b[0m"


def run(config: ShowConfig) -> dict[str, Any]:
    """Print texts and conversations as tokens; the totals are the result."""
    tokenizer = TextTokenizer.from_folder(config.tokenizer)
    totals = {"texts": 0, "tokens": 0, "bytes": 0, "supervised": 0}
    for title, text in _texts(config):
        ids = tokenizer.encode(text)
        console.result(f"--- {title}")
        _print_tokens(tokenizer, ids, [False] * len(ids), config.max_tokens, shows_ids=True)
        size = len(text.encode())
        console.result(f"{len(ids)} tokens, {size} bytes, {size / max(1, len(ids)):.2f} bytes/token")
        totals["texts"] += 1
        totals["tokens"] += len(ids)
        totals["bytes"] += size
    if config.chat is not None:
        _show_chat(tokenizer, config, totals)
    return totals


def _texts(config: ShowConfig) -> Iterator[tuple[str, str]]:
    if config.text is not None:
        yield "text", config.text
    for source in src.expand(config.input) if config.input else []:
        reader = TextReader([source], config.text_field)
        for document in islice(reader.documents(), config.max_rows):
            yield f"{document.source}:{document.position}", document.text


def _show_chat(tokenizer: TextTokenizer, config: ShowConfig, totals: dict[str, int]) -> None:
    """Print conversations with the learned tokens coloured, and how many those are.

    Raises:
        DataError: a row is no conversation, or there are none.
    """
    if not has_generation_blocks(tokenizer.chat_template or ""):
        console.warn("the chat template has no {% generation %} blocks: nothing in it can be learned")
    found = (item for source in src.expand([str(config.chat)]) for item in conversations.of_source(source))
    for conversation in islice(found, config.max_rows):
        if isinstance(conversation, Reject):
            raise DataError(str(conversation))
        title, chat = conversation.where, render(tokenizer, conversation.messages)
        console.result(f"--- {title}")
        _print_tokens(tokenizer, chat.ids, chat.is_supervised, config.max_tokens)
        learned = sum(chat.is_supervised)
        console.result(f"{len(chat.ids)} tokens, {learned} learned ({learned / max(1, len(chat.ids)):.0%})")
        if learned in (0, len(chat.ids)):
            console.warn(f"{title}: {'nothing' if not learned else 'everything'} here would be learned")
        totals["texts"] += 1
        totals["tokens"] += len(chat.ids)
        totals["supervised"] += learned
    if not totals["texts"]:
        raise DataError(f"{config.chat}: no conversations in it")


def _print_tokens(
    tokenizer: TextTokenizer, ids: list[int], is_supervised: list[bool], max_tokens: int, shows_ids: bool = False
) -> None:
    names = {number: name for name, number in tokenizer.special_ids.items()}
    table = tokenizer.token_bytes()
    pieces = [_printable(names[number].encode() if number in names else table[number]) for number in ids[:max_tokens]]
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        painted = (
            f"{_SUPERVISED if learned else _COLOURS[place % 4] if shows_ids else ''}{piece}{_RESET}"
            for place, (piece, learned) in enumerate(zip(pieces, is_supervised, strict=False))
        )
        print("".join(painted).replace("\\n", f"\\n{_RESET}\n"))
    else:
        marked = (f"[{p}]" if learned else p for p, learned in zip(pieces, is_supervised, strict=False))
        console.result("|".join(marked))
    if shows_ids:
        console.result(" ".join(str(number) for number in ids[:max_tokens]))
    if len(ids) > max_tokens:
        console.result(f"... {len(ids) - max_tokens} more (--max-tokens)")


def _printable(piece: bytes) -> str:
    """A token to be read: text where it is text, \\x.. where it is part of a character, \\n for line ends."""
    try:
        return console.visible(piece.decode(), is_strict=True)
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)
