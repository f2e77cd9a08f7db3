"""Preferences: a prompt, the answer that was chosen and the one that was rejected; from rows of any usual form.

Answers are texts, messages, or whole conversations that begin with the prompt. A row without a prompt has two
conversations that differ in their last answer only: messages, or hh-rlhf's dialogue text.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge import console
from fledge.data import prompts, rows
from fledge.data.conversations import hash_limit, normalised, prompt_hash
from fledge.data.messages import Message, checked
from fledge.data.rows import Row
from fledge.data.sharegpt import message_of
from fledge.data.sources import Source
from fledge.errors import DataError

EXPECTS = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
STRENGTH = "preference_strength"

_TURN = re.compile(r"\n\n(Human|Assistant):")
_PROMPTS = ("prompt", "messages", "conversations", "instruction")


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    where: str  # file:line
    prompt: list[Message]
    chosen: str
    rejected: str
    strength: float | None  # how clear the choice was; None where the row does not say
    row: dict[str, Any]  # all of the row

    @property
    def hash(self) -> int:
        """A number below 2^64 by what is asked first."""
        return prompt_hash(self.prompt)


@dataclass(frozen=True)
class Preferences:
    """The pairs of some sources, each once."""

    train: list[Pair]
    held_out: list[Pair]  # by a hash of the prompt, and sorted by it: any first part is a fair sample
    sources: list[Source]
    duplicates: int
    rejects: int


def read(inputs: Sequence[str], held_out_share: float, max_bad_share: float = 0.01) -> Preferences:
    """Read preferences and tell how many there are.

    Args:
        held_out_share: of the pairs, by a hash of the normalised first prompt, as conversations are held out: no
            prompt stands on both sides.
        max_bad_share: of all rows; more rows that can't be used than that stop the run.
    Raises:
        DataError: too many bad rows (names file, line and reason), or fewer than two prompts.
    """
    found = rows.read_as(of_row, inputs, max_bad_share)
    pairs: dict[tuple[Any, ...], Pair] = {}
    for pair in found.rows:
        asked = tuple((m["role"], normalised(m["content"])) for m in pair.prompt)
        pairs.setdefault((asked, pair.chosen, pair.rejected), pair)
    duplicates, num_bad = len(found.rows) - len(pairs), len(found.rejects)
    train, held_out = split(list(pairs.values()), held_out_share)
    if not train:
        raise DataError(f"{', '.join(inputs)}: nothing to train on; give pairs for at least two prompts")
    console.note(
        f"{', '.join(inputs)}: {len(train)} pairs to train on, {len(held_out)} held out, {duplicates} stand twice and "
        f"{num_bad} can't be used"
    )
    return Preferences(train, held_out, found.sources, duplicates, num_bad)


def split(pairs: Sequence[Pair], share: float, start: float = 0.0) -> tuple[list[Pair], list[Pair]]:
    """The pairs that stay, in order, and those of a share of all hashes, of at least one prompt.

    Args:
        start: the share begins here; there are no pairs of smaller hashes any more.
    """
    limit = hash_limit((pair.hash for pair in pairs), share, start)
    held_out = sorted((pair for pair in pairs if pair.hash < limit), key=lambda pair: pair.hash)
    return [pair for pair in pairs if pair.hash >= limit], held_out


def of_row(row: Row) -> Pair:
    """The pair in one row.

    Raises:
        ValueError: it can't be used; says why.
    """
    values = row.values
    if missing := [name for name in ("chosen", "rejected") if values.get(name) is None]:
        fields = ", ".join(map(str, values)) or "none"
        raise ValueError(f"no field '{missing[0]}'; expected {EXPECTS}; fields: {fields}")
    prompt = _prompt(values)
    chosen, rejected = (_conversation(prompt, values[name], name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("'chosen' and 'rejected' answer different prompts")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise ValueError("'chosen' and 'rejected' are the same answer")
    return Pair(
        row.where, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], _strength(values.get(STRENGTH)), values
    )


def _prompt(values: Mapping[str, Any]) -> list[Message]:
    """The messages before the answers, none where the answers bring them."""
    if values.get("prompt") in ("", []):
        raise ValueError("the prompt is empty")
    asked = {name: values[name] for name in (*_PROMPTS, "input") if values.get(name)}
    if not asked.keys() & set(_PROMPTS):
        return []
    if isinstance(turns := asked.get("conversations"), list):
        found = [message_of(turn) for turn in turns]
    elif isinstance(text := asked.get("prompt"), str) and _TURN.match(text):
        found = [turn for turn in _dialogue(text) if turn["content"]]
    else:
        found = prompts.of_row(asked).messages
    if isinstance(values.get("system"), str) and values["system"].strip():
        found = [{"role": "system", "content": values["system"]}, *found]
    return found


def _conversation(prompt: list[Message], answer: Any, name: str) -> list[Message]:
    """The prompt and one answer to it, which may bring the prompt along."""
    if isinstance(answer, str) and not answer.strip():
        raise ValueError(f"'{name}' is empty")
    if isinstance(answer, str):
        turns = [{"role": "assistant", "content": answer}] if prompt else _dialogue(answer)
    elif isinstance(answer, Mapping | list):
        turns = [message_of(turn) for turn in (answer if isinstance(answer, list) else [answer])]
    else:
        raise ValueError(f"'{name}' is neither text nor messages")
    if turns[: len(prompt)] != prompt:
        turns = prompt + turns
    if len(turns) < 2:
        raise ValueError(f"no prompt; expected {EXPECTS}, or whole conversations as 'chosen' and 'rejected'")
    try:
        return checked(turns)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from None


def _dialogue(text: str) -> list[Message]:
    """The messages of hh-rlhf's text."""
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        raise ValueError(f"no prompt; expected {EXPECTS}, or dialogues (Human:, Assistant:) as 'chosen' and 'rejected'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _strength(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        strength = float(value)
    except (TypeError, ValueError):
        strength = math.nan
    if not 0 <= strength < math.inf:
        raise ValueError(f"'{STRENGTH}' is {value!r}; expected a number from 0 on")
    return strength
