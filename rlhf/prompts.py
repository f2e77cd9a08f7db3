"""The prompts that a policy is trained on and measured with: rows of data as ids to continue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge import console
from fledge.data import prompts
from fledge.data import rows as row_reader
from fledge.data.conversations import normalised
from fledge.data.messages import Message
from fledge.data.rows import Reject, Row
from fledge.data.sources import Source
from fledge.data.text import digest
from fledge.errors import DataError
from fledge.tokens import TextTokenizer
from tokenizer import chat


@dataclass(frozen=True)
class Asked:
    """One prompt, ready to be continued."""

    row: dict[str, Any]  # the whole row of the data; `prompt` is filled in where the row calls it otherwise
    messages: list[Message]
    ids: list[int]  # by the chat template, up to where the answer begins; plain text without a template


@dataclass(frozen=True)
class Prompts:
    """The prompts of some sources, each once."""

    train: list[Asked]
    held_out: list[Asked]  # by a hash of the prompt, so whatever seed and order; sorted by it
    sources: list[Source]
    num_duplicates: int
    num_too_long: int


def read(
    inputs: Sequence[str], tokenizer: TextTokenizer, room: int, held_out_share: float, max_bad_share: float = 0.01
) -> Prompts:
    """Read prompts from rows that have `prompt`, `messages` or `instruction`; see `fledge.data.prompts`.

    Args:
        room: tokens that a prompt may have; longer ones are left out and counted.
    Raises:
        DataError: no rows, too many bad ones, or no prompt short enough.
    """
    found = row_reader.read(inputs, max_bad_share)
    seen: set[int] = set()
    asked: list[tuple[int, Asked]] = []
    rejects: list[Reject] = []
    num_too_long = 0
    for row in found.rows:
        try:
            one = of_row(row, tokenizer)
        except ValueError as error:
            rejects.append(Reject(row.source, row.position, str(error)))
            continue
        key = _hash(one)
        if key in seen:
            continue
        seen.add(key)
        if len(one.ids) > room:
            num_too_long += 1
        else:
            asked.append((key, one))
    row_reader.check_share(rejects, len(found.rows), max_bad_share)
    named = ", ".join(inputs)
    if len(asked) < 2:
        raise DataError(
            f"{named}: {len(asked)} prompts fit into {room} tokens, {num_too_long} are longer; "
            "at least two are needed: shorten them, or lower --sampling.max-new-tokens"
        )
    num_duplicates = len(found.rows) - len(rejects) - len(seen)
    console.note(
        f"{named}: {len(asked)} prompts ({num_duplicates} stand twice, {num_too_long} are longer than {room} tokens)"
    )
    limit = max(held_out_share * 2**64, min(key for key, _ in asked) + 1)  # one at least
    train = [one for key, one in asked if key >= limit]
    held_out = sorted((pair for pair in asked if pair[0] < limit), key=lambda pair: pair[0])
    return Prompts(train, [one for _, one in held_out], found.sources, num_duplicates, num_too_long)


def of_row(row: Row, tokenizer: TextTokenizer) -> Asked:
    """The prompt of one row.

    Raises:
        ValueError: it has none.
    """
    asked = prompts.of_row(row.values)
    return Asked({"prompt": asked.plain} | row.values, asked.messages, ids_of(asked.messages, tokenizer))


def ids_of(messages: Sequence[Message], tokenizer: TextTokenizer) -> list[int]:
    """The ids up to where an answer begins: by the chat template, or without one the plain text."""
    if tokenizer.chat_template is not None:
        return chat.render(tokenizer, messages, add_generation_prompt=True).ids
    return tokenizer.encode("\n\n".join(message["content"] for message in messages))


def _hash(asked: Asked) -> int:
    text = "\0".join(f"{message['role']}\0{normalised(message['content'])}" for message in asked.messages)
    return int.from_bytes(digest(text.encode())[8:], "little")
