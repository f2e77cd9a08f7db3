"""Labelled texts for classification: rows of `text` and `label`, and `text_pair` where two texts are compared."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.data import rows
from fledge.data.sources import Source
from fledge.errors import DataError


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or pair of texts, with the name of its class."""

    where: str  # file:line
    text: str
    text_pair: str | None
    label: str

    @property
    def all_text(self) -> str:
        """Both texts of a pair, a line each."""
        return self.text if self.text_pair is None else f"{self.text}\n{self.text_pair}"


@dataclass(frozen=True)
class Labelled:
    """The examples of some sources, in order, each text with a label once."""

    examples: list[Example]
    labels: list[str]  # names of the classes, sorted
    sources: list[Source]
    num_duplicates: int  # rows left out as they stood there before


def read(inputs: Sequence[str], max_bad_share: float = 0.01) -> Labelled:
    """Read labelled texts; a file without a known suffix has lines `label<TAB>text`, as SMSSpamCollection.

    Raises:
        DataError: too many rows without text or label, a single class, names that differ in case only.
    """
    found = rows.read_as(_example, inputs, max_bad_share, parse_line)
    examples: dict[tuple[str, str | None, str], Example] = {}
    for example in found.rows:
        examples.setdefault((example.text, example.text_pair, example.label), example)
    kept = list(examples.values())
    return Labelled(kept, _labels(kept), found.sources, len(found.rows) - len(kept))


def parse_line(line: str) -> dict[str, Any]:
    """The row of a line `label<TAB>text`.

    Raises:
        ValueError: there is no tab in it.
    """
    label, tab, text = line.partition("\t")
    if not tab:
        raise ValueError("no tab; expected label<TAB>text")
    return {"label": label, "text": text}


def text_of(values: dict[str, Any]) -> tuple[str, str | None]:
    """Text and second text (None if there is none) of a row's fields.

    Raises:
        ValueError: the text is missing or is no text.
    """
    text, pair = values.get("text"), values.get("text_pair")
    if not isinstance(text, str) or not isinstance(pair, str | None):
        name, value = ("text", text) if not isinstance(text, str) else ("text_pair", pair)
        known = ", ".join(map(str, values))
        raise ValueError(f"no field '{name}'; fields: {known}" if value is None else f"'{name}' is not text: {value!r}")
    return text, pair


def _example(row: rows.Row) -> Example:
    try:
        text, pair = text_of(row.values)
    except ValueError as error:
        is_table = row.source.endswith((".csv", ".tsv"))
        raise ValueError(f"{error}{'; its first line must name the columns' if is_table else ''}") from None
    label = row.values.get("label")
    if not isinstance(label, str | int) or not str(label).strip():
        raise ValueError("no label" if label in (None, "") or isinstance(label, str) else f"label {label!r}")
    if not text.strip():
        raise ValueError("empty text")
    return Example(row.where, text, pair, str(label).strip())


def _labels(examples: list[Example]) -> list[str]:
    """The names of the classes.

    Raises:
        DataError: there is only one, or two differ in case only; names rows that have them.
    """
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.label, example)
    alike = defaultdict(list)
    for name, example in first.items():
        alike[name.casefold()].append(f"'{name}' ({example.where})")
    for spellings in alike.values():
        if len(spellings) > 1:
            raise DataError(f"labels that differ in case only: {', '.join(spellings)}; write them in one way")
    if len(first) < 2:
        only = f"all rows are labelled '{next(iter(first))}'" if first else "there are no labelled rows"
        raise DataError(f"{only}; classification needs at least two classes")
    return sorted(first)
