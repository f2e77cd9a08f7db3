"""Rows of fields from any source: JSON, JSON lines, CSV, TSV, parquet, the hub, the village."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fledge import console, hub
from fledge.data import sources as src
from fledge.data.sources import Source
from fledge.errors import DataError

_BLOCK_BYTES = 1 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Reject:
    """A row or file that can't be used, and why."""

    source: str
    position: int
    reason: str  # a few fixed wordings, so that they can be counted
    detail: str = ""  # what in this row is wrong, what to do
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.position}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of fields."""

    source: str
    position: int  # line or row from 1
    values: dict[str, Any]  # without nulls: parquet and the hub write every column in every row

    @property
    def where(self) -> str:
        """Its place, as messages show it."""
        return f"{self.source}:{self.position}"


T = TypeVar("T")


@dataclass(frozen=True)
class Rows(Generic[T]):
    """What was made of the rows of some sources, in order."""

    rows: list[T]
    sources: list[Source]
    rejects: list[Reject]


Item = tuple[int, Any] | Reject  # position and content, or why there is none


def read(inputs: Sequence[str], max_bad_share: float = 0.01) -> Rows[Row]:
    """Read all rows as they are; see `read_as`."""
    return read_as(lambda row: row, inputs, max_bad_share)


def read_as(
    make: Callable[[Row], T | None],
    inputs: Sequence[str],
    max_bad_share: float = 0.01,
    parse_line: Callable[[str], dict[str, Any]] | None = None,
) -> Rows[T]:
    """Read all rows of paths, folders, globs, hub names and parts of the village, and make something of each.

    Args:
        make: None where a row is not wanted; raises ValueError with the reason where it can't be used.
        max_bad_share: of all rows; more bad rows than that stop the run, fewer are told one by one.
        parse_line: makes a row of a line of a plain text file, or raises ValueError with the reason.
    Raises:
        DataError: a source can't be read, holds text where rows are wanted, or too many rows are bad.
    """
    found = src.expand(inputs)
    made: list[T] = []
    rejects: list[Reject] = []
    num_rows = 0
    with console.progress("reading", unit="rows") as bar:
        for item in (item for source in found for item in iterate(source, parse_line)):
            num_rows += 1
            bar.advance()
            try:
                if isinstance(item, Reject):
                    rejects.append(item)
                elif (one := make(item)) is not None:
                    made.append(one)
            except ValueError as error:
                rejects.append(Reject(item.source, item.position, str(error)))
    check_share(rejects, num_rows, max_bad_share)
    return Rows(made, found, rejects)


def check_share(rejects: Sequence[Reject], total: int, max_bad_share: float) -> None:
    """Tell each bad row, or stop where they are more than a share of all.

    Raises:
        DataError: they are.
    """
    if len(rejects) > max_bad_share * total:
        raise DataError(
            f"{rejects[0]}; {len(rejects)} of {total} rows are bad, "
            f"more than the share of {max_bad_share:g} that is passed over: mend them"
        )
    for reject in rejects:
        console.warn(f"passed over {reject}")


def iterate(source: Source, parse_line: Callable[[str], dict[str, Any]] | None = None) -> Iterator[Row | Reject]:
    """The rows of one source as they are read, and what is no row; arguments and errors as in `read_as`."""
    for item in _items(source, parse_line):
        if isinstance(item, Reject):
            yield item
        elif not isinstance(item[1], dict):
            yield Reject(source.name, item[0], "not an object", "expected a row of fields")
        else:
            yield Row(source.name, item[0], {name: value for name, value in item[1].items() if value is not None})


def _items(source: Source, parse_line: Callable[[str], dict[str, Any]] | None) -> Iterator[Item]:
    if not has_stream(source):
        yield from without_stream(source)
        return
    stream, raw = src.open_source(source)
    with stream, raw:
        if source.format in ("jsonl", "json", "csv", "tsv"):
            yield from of_stream(source, stream)
        elif source.format == "text" and parse_line:
            yield from _parsed_lines(source, stream, parse_line)
        else:
            raise DataError(
                f"{source.name}: {source.format}, where rows of fields are wanted; "
                "give json, jsonl, csv, tsv or parquet"
            )


def has_stream(source: Source) -> bool:
    """Whether a source's rows are read from one stream of bytes."""
    return source.kind == "file" and source.format != "parquet"


def without_stream(source: Source, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a parquet file, a hub data set or a part of the village, numbered from 1.

    Args:
        columns: of a parquet file, the ones to read; None reads all.
    """
    if source.kind == "village":
        from fledge.village import spec

        rows = spec.rows(source.name)
    else:
        rows = _hub_rows(source) if source.kind == "hub" else _parquet_rows(source, columns)
    yield from enumerate(rows, 1)


def of_stream(source: Source, stream: io.BufferedReader) -> Iterator[Item]:
    """The rows of a json, jsonl, csv or tsv file, numbered by line (in a JSON list by row)."""
    if source.format in ("csv", "tsv"):
        return _table(source, stream)
    if source.format == "json" and _begins_list(source, stream):
        return _json_list(source, stream)
    return _json_lines(source, stream)


def _json_lines(source: Source, stream: io.BufferedReader) -> Iterator[Item]:
    for number, line in src.lines(source, stream):
        if line.isspace():
            continue
        try:
            row = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
        except UnicodeDecodeError as error:
            yield not_utf8(source, number, error, 0)
        except (ValueError, RecursionError) as error:
            if source.format == "json" and number == 1 and line.rstrip().endswith((b"{", b"[", b",")):
                raise DataError(f"{source.name}: a single object; give a list, or one object a line") from None
            excerpt = line[:200].decode("utf-8", "replace")
            yield Reject(source.name, number, "broken JSON", str(error), excerpt)
        else:
            yield _whole(source, number, row) if _SURROGATE.search(line) else (number, row)


def _json_list(source: Source, stream: io.BufferedReader) -> Iterator[Item]:
    content = b"".join(src.blocks(source, stream, _BLOCK_BYTES))
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(str(not_utf8(source, 1, error, 0))) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source.name}: broken JSON ({error}); mend it, or write one object a line") from None
    has_surrogates = _SURROGATE.search(content)
    for number, row in enumerate(rows, 1):
        yield _whole(source, number, row) if has_surrogates else (number, row)


def _whole(source: Source, number: int, row: Any) -> Item:
    """A row of JSON, unless it holds half of what JSON writes in two halves (an emoji)."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        return Reject(source.name, number, "not UTF-8", f"half a surrogate pair, {half}; write the other half or none")
    return number, row


def _begins_list(source: Source, stream: io.BufferedReader) -> bool:
    try:
        return stream.peek(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    except src.damage_errors() as error:
        raise src.damaged(source, "0 bytes", error) from None


def _table(source: Source, stream: io.BufferedReader) -> Iterator[Item]:
    """CSV with quotes, or TSV without, below a line of column names."""
    csv.field_size_limit(1 << 30)
    done = 0  # lines of whole rows
    try:
        text = (line.decode("utf-8") for _, line in src.lines(source, stream))
        style: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if source.format == "tsv" else {}
        table = csv.DictReader(text, strict=True, **style)
        done = table.line_num if table.fieldnames else 0
        for row in table:
            done = table.line_num
            if any(row.pop(None, ())):
                told = "a tab in a text" if source.format == "tsv" else 'a text with commas needs "quotes"'
                yield Reject(source.name, done, "more fields than columns", told)
            else:
                yield done, row
    except UnicodeDecodeError as error:
        raise DataError(str(not_utf8(source, table.line_num + 1, error, 0))) from None
    except csv.Error as error:
        raise DataError(f"{source.name}:{done + 1}: broken table ({error}); mend the quotes from there on") from None


def _parsed_lines(
    source: Source, stream: io.BufferedReader, parse_line: Callable[[str], dict[str, Any]]
) -> Iterator[Item]:
    for number, line in src.lines(source, stream):
        try:
            yield number, parse_line(line.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            yield not_utf8(source, number, error, 0)
        except ValueError as error:
            yield Reject(source.name, number, str(error), "", line[:200].decode("utf-8"))


def not_utf8(source: Source, position: int, error: UnicodeDecodeError, offset: int) -> Reject:
    """The reject for bytes that are not UTF-8; `offset` counts what was decoded before."""
    byte = error.object[error.start]
    return Reject(
        source.name,
        position,
        "not UTF-8",
        f"byte 0x{byte:02x} at offset {offset + error.start}; convert it, for example with iconv",
        error.object[max(0, error.start - 40) : error.start + 40].decode("utf-8", "replace"),
    )


def _parquet_rows(source: Source, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source.path) as file:
            known = file.schema_arrow.names
            for column in columns or []:
                if column not in known:
                    raise DataError(
                        f"{source.name}: no column '{column}'; columns: {', '.join(known)}; choose with --text-field"
                    )
            for batch in file.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{source.name}: damaged parquet file ({error}); download it again") from None


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    """The rows of `owner/name[:subset]`, split `train`, streamed."""
    name, _, subset = source.name.partition(":")
    hub.go_online()
    commit = hub.facts(name, "dataset")["commit"]
    import datasets

    try:
        yield from datasets.load_dataset(name, subset or None, split="train", streaming=True, revision=commit)
    except Exception as error:  # the library and its transports have dozens of classes
        if "Config name is missing" in str(error):
            known = datasets.get_dataset_config_names(name, revision=commit)
            raise DataError(f"{name}: has several subsets ({', '.join(known)}); give {name}:{known[0]}") from None
        raise DataError(hub.refusal(source.name, error)) from None
