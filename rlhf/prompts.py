"""The prompts that a policy is trained on and measured with: rows of data as ids to continue."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fledge import console
from fledge.data import prompts, rows
from fledge.data.conversations import hash_limit, normalised, prompt_hash
from fledge.data.messages import Message
from fledge.data.rows import Row
from fledge.data.sources import Source
from fledge.errors import DataError
from fledge.tokens import TextTokenizer
from tokenizer import chat


@dataclass(frozen=True)
class Asked:
    """One prompt, ready to be continued."""

    row: dict[str, Any]  # the whole row of the data; `prompt` is filled in where the row calls it otherwise
    messages: list[Message]
    ids: list[int]  # by the chat template, up to where the answer begins; plain text without a template

    @cached_property
    def hash(self) -> int:
        """A number below 2^64 by what is asked first, as for conversations and preferences."""
        return prompt_hash(self.messages)


@dataclass(frozen=True)
class Prompts:
    """The prompts of some sources, each once."""

    train: list[Asked]
    held_out: list[Asked]  # by a hash of the prompt, so whatever seed and order, and as in other stages; sorted by it
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
        DataError: no rows, too many bad ones, or fewer than two prompts that are short enough and begin otherwise.
    """
    found = rows.read_as(lambda row: of_row(row, tokenizer), inputs, max_bad_share)
    different: dict[tuple[tuple[str, str], ...], Asked] = {}
    for one in found.rows:
        different.setdefault(tuple((m["role"], normalised(m["content"])) for m in one.messages), one)
    asked = [one for one in different.values() if len(one.ids) <= room]
    num_duplicates = len(found.rows) - len(different)
    num_too_long = len(different) - len(asked)
    named, hashes = ", ".join(inputs), {one.hash for one in asked}
    if len(hashes) < 2:
        raise DataError(
            f"{named}: {len(asked)} prompts fit into {room} tokens, {num_too_long} are longer; at least two that begin "
            "otherwise are needed: shorten them, or lower --sampling.max-new-tokens"
        )
    console.note(
        f"{named}: {len(asked)} prompts ({num_duplicates} stand twice, {num_too_long} are longer than {room} tokens)"
    )
    limit = min(hash_limit(hashes, held_out_share), max(hashes))  # one at least on each side
    held_out = sorted((one for one in asked if one.hash < limit), key=lambda one: one.hash)
    return Prompts([one for one in asked if one.hash >= limit], held_out, found.sources, num_duplicates, num_too_long)


def of_row(row: Row, tokenizer: TextTokenizer) -> Asked:
    """The prompt of one row.

    Raises:
        ValueError: it has none, nothing in it is said by a user, or the chat template refuses it.
    """
    asked = prompts.of_row(row.values)
    if all(message["role"] != "user" for message in asked.messages):
        raise ValueError("no message in it is a user's")
    try:
        ids = ids_of(asked.messages, tokenizer)
    except DataError as error:
        raise ValueError(str(error)) from None
    return Asked({"prompt": asked.plain} | row.values, asked.messages, ids)


def ids_of(messages: Sequence[Message], tokenizer: TextTokenizer) -> list[int]:
    """The ids up to where an answer begins: by the chat template, or without one the plain text."""
    if tokenizer.chat_template is not None:
        return chat.render(tokenizer, messages, add_generation_prompt=True).ids
    return tokenizer.encode("\n\n".join(message["content"] for message in messages))
