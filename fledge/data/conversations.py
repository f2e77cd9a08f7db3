"""Conversations from files of any known format: read, judged, mixed by weight, split by a hash of the prompt."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fledge import console, data
from fledge.data import rows as row_reader
from fledge.data import sources as src
from fledge.data.digests import DigestSet
from fledge.data.messages import Message
from fledge.data.rows import Reject, Row
from fledge.data.sources import Source
from fledge.data.text import digest
from fledge.errors import DataError

TOLD = 4  # messages of the first row, so that one sees how it is read


@dataclass(frozen=True)
class Conversation:
    """One conversation and the place it comes from."""

    where: str  # "file:line"
    messages: list[Message]

    @property
    def prompt(self) -> list[Message]:
        """What comes before the last answer."""
        return self.messages[:-1]


@dataclass(frozen=True)
class Conversations:
    """What was read for training: mixed by the weights, and a part held out."""

    train: list[Conversation]
    held_out: list[Conversation]  # in an order by hash: any first part is a fair sample
    sources: list[Source]
    duplicates: int
    rejects: int


def read(
    inputs: Sequence[str], held_out_share: float, format_name: str = "auto", max_bad_share: float = 0.01
) -> Conversations:
    """Read conversations, `--data FILE[:WEIGHT]`, and tell how they were read.

    Args:
        held_out_share: of the rows, by a hash of the normalised first prompt: no prompt stands on both sides.
        format_name: of the rows, a module in fledge/data; `auto` decides it for each file from its first row.
        max_bad_share: of all rows; more rows that can't be used than that stop the run.
    Raises:
        DataError: a row or file can't be used; names file, line and reason.
    """
    weighted = [split_weight(text) for text in inputs]
    if len({weight is None for _, weight in weighted}) > 1:
        raise DataError("--data: some have a weight and some have none; give each one, FILE:WEIGHT, or none")
    parts: list[list[Conversation]] = []
    sources: list[Source] = []
    rejects: list[Reject] = []
    seen, duplicates, num_rows = DigestSet(), 0, 0
    for text, _ in weighted:
        part: list[Conversation] = []
        for source in src.expand([text]):
            sources.append(source)
            for item in of_source(source, format_name):
                num_rows += 1
                if isinstance(item, Reject):
                    rejects.append(item)
                elif not seen.add(_fingerprint(item.messages)):
                    duplicates += 1
                else:
                    part.append(item)
        parts.append(part)
    row_reader.check_share(rejects, num_rows, max_bad_share)
    limit = hash_limit((_prompt_hash(c) for part in parts for c in part), held_out_share)
    held_out = sorted((c for part in parts for c in part if _prompt_hash(c) < limit), key=_prompt_hash)
    parts = [[c for c in part if _prompt_hash(c) >= limit] for part in parts]
    weights = [weight for _, weight in weighted if weight is not None]
    train = mix(list(zip(weights, parts, strict=True))) if weights else [c for part in parts for c in part]
    if not train:
        raise DataError(f"{', '.join(inputs)}: nothing to train on; give at least two different prompts")
    console.note(
        f"{num_rows} rows: {len(train)} to train on, {len(held_out)} held out, {duplicates} stand twice and "
        f"{len(rejects)} can't be used"
    )
    return Conversations(train, held_out, sources, duplicates, len(rejects))


def split_weight(text: str) -> tuple[str, float | None]:
    """The input and the weight of `FILE:0.7`; no weight where there is none.

    Raises:
        DataError: the weight is not above 0.
    """
    head, _, tail = text.rpartition(":")
    if not head or Path(text).exists():
        return text, None
    try:
        weight = float(tail)
    except ValueError:
        return text, None
    if not 0 < weight < float("inf"):
        raise DataError(f"--data {text}: the weight must be above 0")
    return head, weight


def mix(parts: Sequence[tuple[float, list[Conversation]]]) -> list[Conversation]:
    """Rows of each part by its weight, together as many as there are: whole repeats, then the first by hash."""
    total, rows = sum(weight for weight, _ in parts), sum(len(part) for _, part in parts)
    mixed: list[Conversation] = []
    for weight, part in parts:
        if part:
            repeats, rest = divmod(round(weight / total * rows), len(part))
            mixed += part * repeats + sorted(part, key=lambda c: _fingerprint(c.messages))[:rest]
    return mixed


def normalised(text: str) -> str:
    """A text without what does not make it another: case and spacing."""
    return " ".join(text.casefold().split())


@functools.cache
def formats() -> dict[str, ModuleType]:
    """The modules in this folder that make conversations of rows."""
    modules = {m.name: importlib.import_module(f"fledge.data.{m.name}") for m in pkgutil.iter_modules(data.__path__)}
    return {name: module for name, module in modules.items() if hasattr(module, "to_messages")}


def of_source(source: Source, format_name: str = "auto") -> Iterator[Conversation | Reject]:
    """The conversations of one file, all read as its first row is; tells that reading.

    Raises:
        DataError: the first row is of no known format; lists them.
    """
    module: ModuleType | None = None
    is_told = False
    for row in row_reader.iterate(source):
        if isinstance(row, Reject):
            yield row
            continue
        if module is None:
            module = _format_of(row, format_name)
        try:
            if not module.claims(row.values):
                raise ValueError(f"expected {module.EXPECTS}; fields: {', '.join(map(str, row.values))}")
            messages = module.to_messages(row.values)
        except ValueError as error:
            yield Reject(source.name, row.position, str(error))
            continue
        if not is_told:
            first = [f"{m['role']}: {_short(m['content'])}" for m in messages[:TOLD]]
            first += [f"... {len(messages) - TOLD} more"] if len(messages) > TOLD else []
            console.note(f"{row.where}: read as {module.__name__.split('.')[-1]}: {' | '.join(first)}")
            is_told = True
        yield Conversation(row.where, messages)


def _format_of(row: Row, name: str) -> ModuleType:
    known = formats()
    if name != "auto":
        if name not in known:
            raise DataError(f"--format {name}: not known; there are: auto, {', '.join(known)}")
        return known[name]
    claiming = [name for name, module in known.items() if module.claims(row.values)]
    if len(claiming) == 1:
        return known[claiming[0]]
    if claiming:
        raise DataError(f"{row.where}: may be read as {' or '.join(claiming)}; choose with --format")
    expected = "\n".join(f"  {module.EXPECTS}" for module in known.values())
    fields = ", ".join(map(str, row.values)) or "none"
    raise DataError(f"{row.where}: no known format (fields: {fields}); expected one of\n{expected}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def _fingerprint(messages: Sequence[Message]) -> bytes:
    """Prompts differ by more than case and spacing; answers by these, too: they may be what is to be learned."""
    texts = (normalised(m["content"]) if m["role"] == "user" else m["content"].strip() for m in messages)
    return digest("\0".join(f"{m['role']}\0{text}" for m, text in zip(messages, texts, strict=True)).encode())


def prompt_hash(messages: Sequence[Message]) -> int:
    """A number below 2^64 by what the user says first: the stages hold out the same prompts by it."""
    first = next(m["content"] for m in messages if m["role"] == "user")
    return int.from_bytes(digest(normalised(first).encode())[8:], "little")


def hash_limit(hashes: Iterable[int], share: float, start: float = 0.0) -> float:
    """The hash below which prompts are held out from `start` (a share of all) on: a share of all, one at least."""
    first = start * 2**64
    return max(first + share * 2**64, min((h for h in hashes if h >= first), default=0) + 1)


def _prompt_hash(conversation: Conversation) -> int:
    return prompt_hash(conversation.messages)
