"""Documents for pretraining and tokenizers: a stream of texts from any source, in constant memory.

A .txt, .md or .html file is one document; every other format has one document a row, in a field named `text`
unless another is chosen. Rows that can't be read are counted and told to the caller; too many stop the run.
"""

import codecs
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from fledge.data import rows
from fledge.data import sources as src
from fledge.data.rows import Reject
from fledge.data.sources import Source
from fledge.errors import DataError

# A longer text file comes in parts of about this size, so that memory does not grow with it.
PART_BYTES = 1 << 20
_ROWS_BEFORE_STOPPING = 1000  # a bad share of fewer rows says little; it is judged at the end


@dataclass(frozen=True, slots=True)
class Document:
    """A document, or one part of a long text file."""

    text: str
    source: str
    position: int  # line or row from 1; 1 for a file that is one document
    digest: bytes  # 16 bytes of BLAKE2b over the whole document's UTF-8
    num_bytes: int  # UTF-8 bytes of `text`
    is_last_part: bool = True


class Cursor(NamedTuple):
    """How far a reader has come: so many items (documents, parts, rejects) of the source with this number."""

    source: int = 0
    items: int = 0


class RowCounts(NamedTuple):
    """How many rows have been read, and how many of them were bad."""

    all: int = 0
    bad: int = 0


def digest(text: bytes) -> bytes:
    """16 bytes that stand for a text in deduplication and in the split."""
    return hashlib.blake2b(text, digest_size=16).digest()


class TextReader:
    """Reads documents from sources one after the other, counting what is bad.

    Args:
        text_field: the field or column that holds the text of a row.
        is_html: whether that field holds HTML pages, of which the main text is kept.
        max_bad_share: of all rows; more bad rows than that stop the run.
        on_reject: told each bad row.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        text_field: str = "text",
        is_html: bool = False,
        max_bad_share: float = 0.01,
        on_reject: Callable[[Reject], None] | None = None,
    ) -> None:
        self.sources = list(sources)
        self.cursor = Cursor()
        self.rows = RowCounts()
        self._size_bytes_read = 0
        self._text_field, self._is_html = text_field, is_html
        self._max_bad_share, self._on_reject = max_bad_share, on_reject
        self._first_bad: Reject | None = None
        self._raw: IO[bytes] | None = None

    def documents(
        self,
        start: Cursor = Cursor(),  # noqa: B008 (a constant)
        counted: RowCounts = RowCounts(),  # noqa: B008
    ) -> Iterator[Document]:
        """The documents from a cursor on; `self.cursor` always stands behind the last one given.

        Args:
            counted: rows before the cursor.
        Raises:
            DataError: a source can't be read, or the share of bad rows is too high.
        """
        self.rows = counted
        self._size_bytes_read = sum(source.size_bytes for source in self.sources[: start.source])
        for number in range(start.source, len(self.sources)):
            skipped = start.items if number == start.source else 0
            for items, item in enumerate(self._items(self.sources[number]), 1):
                if items <= skipped:
                    continue
                self.cursor = Cursor(number, items)
                if isinstance(item, Reject):
                    self._count_bad(item)
                else:
                    self.rows = RowCounts(self.rows.all + item.is_last_part, self.rows.bad)
                    yield item
            self._raw = None
            self._size_bytes_read += self.sources[number].size_bytes
        self._check_share()

    @property
    def size_bytes_done(self) -> int:
        """Stored bytes of the sources that have been read, for progress."""
        here = 0 if self._raw is None or self._raw.closed else self._raw.tell()
        return self._size_bytes_read + here

    def _count_bad(self, reject: Reject) -> None:
        self.rows = RowCounts(self.rows.all + 1, self.rows.bad + 1)
        self._first_bad = self._first_bad or reject
        if self._on_reject:
            self._on_reject(reject)
        if self.rows.all >= _ROWS_BEFORE_STOPPING:
            self._check_share()

    def _check_share(self) -> None:
        if self.rows.bad > self._max_bad_share * self.rows.all:
            raise DataError(
                f"{self._first_bad or 'before it was stopped'}; {self.rows.bad} of {self.rows.all} rows are bad, "
                f"more than the share of {self._max_bad_share:g} that is passed over: "
                "mend them or raise --max-bad-share"
            )

    def _items(self, source: Source) -> Iterator[Document | Reject]:
        if not rows.has_stream(source):
            for position, row in rows.without_stream(source, [self._text_field]):
                yield self._from_row(source, position, row)
            return
        stream, self._raw = src.open_source(source)
        with stream, self._raw:
            yield from _READERS[source.format](self, source, stream)

    def _from_row(self, source: Source, position: int, row: Any) -> Document | Reject:
        """The document in a row of fields, or why there is none."""
        field = self._text_field
        if not isinstance(row, dict):
            return Reject(source.name, position, "not an object", 'expected {"text": ...}', str(row)[:200])
        if field not in row:
            known = ", ".join(map(str, row)) or "none"
            return Reject(source.name, position, f"no field '{field}'", f"fields: {known}; choose with --text-field")
        text = row[field]
        if not isinstance(text, str):
            return Reject(source.name, position, f"'{field}' is not text", f"it is {type(text).__name__}")
        if self._is_html:
            return self._from_html(source, position, text)
        return _document(source, position, text)

    def _from_html(self, source: Source, position: int, page: str) -> Document | Reject:
        import trafilatura

        text = trafilatura.extract(page, include_comments=False) if page.strip() else None
        if not text:
            return Reject(source.name, position, "no main text in the page", "", page[:200])
        return _document(source, position, text)

    def _rows(self, source: Source, stream: io.BufferedReader) -> Iterator[Document | Reject]:
        for item in rows.of_stream(source, stream):
            yield item if isinstance(item, Reject) else self._from_row(source, *item)

    def _page(self, source: Source, stream: io.BufferedReader) -> Iterator[Document | Reject]:
        try:
            page = b"".join(src.blocks(source, stream, PART_BYTES)).decode("utf-8")
        except UnicodeDecodeError as error:
            yield rows.not_utf8(source, 1, error, 0)
        else:
            yield self._from_html(source, 1, page)

    def _whole_file(self, source: Source, stream: io.BufferedReader) -> Iterator[Document | Reject]:
        """A text file as one document, byte for byte; in parts, cut at line ends, if it is long."""
        checked = _check_text(source, stream)
        if isinstance(checked, Reject | Document):
            yield checked
            return
        again, self._raw = src.open_source(source)
        with again, self._raw:
            for text, is_last in _parts(source, again):
                yield Document(text, source.name, 1, checked, len(text.encode()), is_last)


_READERS: dict[str, Callable[[TextReader, Source, io.BufferedReader], Iterator[Document | Reject]]] = {
    "text": TextReader._whole_file,
    "jsonl": TextReader._rows,
    "json": TextReader._rows,
    "csv": TextReader._rows,
    "tsv": TextReader._rows,
    "html": TextReader._page,
}


def _document(source: Source, position: int, text: str) -> Document:
    encoded = text.encode()
    return Document(text, source.name, position, digest(encoded), len(encoded))


def _check_text(source: Source, stream: io.BufferedReader) -> Document | Reject | bytes:
    """Read a text file: the document if it is short, what is wrong with it, or the digest of a long one."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    hasher = hashlib.blake2b(digest_size=16)
    size, start = 0, ""
    for block in src.blocks(source, stream, PART_BYTES):
        if size == 0 and b"\0" in block[: src.SNIFFED_BYTES]:
            if block.startswith(src.UTF16):
                return Reject(source.name, 1, "not UTF-8", src.UTF16_KIND)
            return Reject(source.name, 1, "binary, not text", "leave it out")
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            return rows.not_utf8(source, 1, error, size + len(block) - len(error.object))
        start = start + text if size < PART_BYTES else ""
        hasher.update(block)
        size += len(block)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return rows.not_utf8(source, 1, error, size - len(error.object))
    return Document(start, source.name, 1, hasher.digest(), size) if size <= PART_BYTES else hasher.digest()


def _parts(source: Source, stream: io.BufferedReader) -> Iterator[tuple[str, bool]]:
    """The text of a stream in parts of about PART_BYTES, and whether each is the last."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    for block in src.blocks(source, stream, PART_BYTES):
        pending += decoder.decode(block)
        cut = safe_cut(pending)
        if cut:
            yield pending[:cut], False
            pending = pending[cut:]
    yield pending, True


def safe_cut(text: str) -> int:
    """The last place where a text can be cut without changing its tokens; 0 if there is none.

    Behind a single line end between two signs that are no space; where a text has none, before a space between
    two letters. GPT-style pre-splits reach over neither, so both sides tokenise as they do together.
    """
    for pattern in (r"(?<=\S\n)(?=\S)", r"(?<=[A-Za-z])(?= [A-Za-z])"):
        tail = max(0, len(text) - (1 << 16))
        cuts = [match.start() for match in re.finditer(pattern, text[tail:])]
        if cuts:
            return tail + cuts[-1]
    return 0


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut a text at line ends into pieces of about `size` characters (more where a line is longer)."""
    start = 0
    while len(text) - start > size:
        end = text.find("\n", start + size)
        while 0 <= end < len(text) - 1 and text[end + 1].isspace():
            end = text.find("\n", end + 1)
        if end < 0 or end == len(text) - 1:
            break
        yield text[start : end + 1]
        start = end + 1
    if start < len(text):
        yield text[start:]
