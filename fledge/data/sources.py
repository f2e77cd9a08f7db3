"""What `--input` and `--data` mean: an ordered list of files, hub data sets and parts of the village."""

import codecs
import glob
import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from fledge import console, hub
from fledge.errors import DataError
from fledge.lineage import sha256_file

Kind = Literal["file", "hub", "village"]
FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF16_KIND = "UTF-16; convert it to UTF-8, for example with iconv"
RUNS_OWN = ("lineage.json", "seeds.json")  # beside a config.yaml: a run folder, or one of several seeds
SNIFFED_BYTES = 8192  # of a file, to tell binary from text
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """One file, hub data set or part of the village."""

    name: str  # as messages and lineage show it
    kind: Kind
    format: str  # one of FORMATS' values; of no meaning unless a file
    compression: str | None = None
    size_bytes: int = 0  # as stored; 0 if not known

    @property
    def path(self) -> Path:
        """The file's path."""
        return Path(self.name)


def expand(inputs: Sequence[str | Path]) -> list[Source]:
    """The sources behind paths, folders, globs, `owner/name[:subset]` on the hub and `village:WORLD/KIND`.

    In the order given, folders and globs in order of name; a file that is reached twice is taken once.
    Raises:
        DataError: a missing path, a glob without match, a folder without data, an empty or binary file.
    """
    sources: dict[str, Source] = {}
    for text in map(str, inputs):
        for source in _expand_one(text):
            key = os.path.realpath(source.name) if source.kind == "file" else source.name
            sources.setdefault(key, source)
    if not sources:
        raise DataError("no input given; name a file, a folder, a glob, a hub name or village:stories")
    return list(sources.values())


def _expand_one(text: str) -> list[Source]:
    path = Path(text)
    if path.is_file():
        return [_named_file(path)]
    if path.is_dir():
        return _folder(path)
    if text.startswith("village:"):
        from fledge.village.spec import parse_spec

        parse_spec(text)  # a wrong name is an error here, not after hours of other input
        return [Source(text, "village", "rows")]
    if any(character in text for character in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 (absolute too)
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(f"{text}: no file matches; check the folder and the quotes around the pattern")
        return [_file(match) for match in files]
    if hub.looks_like_hub_name(text.split(":")[0]):
        return [Source(text, "hub", "rows")]
    if path.exists():
        raise DataError(f"{text}: a pipe or device, which can't be read twice; write it to a file first")
    raise DataError(f"{text}: no such file or folder{hub.suggestion(path) or '; check the path'}")


def _named_file(path: Path) -> Source:
    """A file that was named itself: what can't be text is an error at once, not a row to pass over."""
    source = _file(path)
    if source.size_bytes == 0:
        raise DataError(f"{path}: empty file; leave it out or fill it")
    if source.format == "text" and source.compression is None:
        with path.open("rb") as file:
            start = file.read(SNIFFED_BYTES)
        if b"\0" in start and start.startswith(UTF16):
            raise DataError(f"{path}: {UTF16_KIND}")
        if b"\0" in start:
            raise DataError(f"{path}: binary file, not text; known formats are {', '.join(FORMATS)}")
    return source


def _folder(path: Path) -> list[Source]:
    below = files_below(path)
    runs = {file.parent for file in below if file.name in RUNS_OWN and file.with_name("config.yaml").is_file()} - {path}
    files = [
        file
        for file in below
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
        and runs.isdisjoint(file.parents)
        and _format(file)[0] is not None
    ]
    if runs:
        console.note(f"{path}: run folders in it are left out, the first is {min(runs)}; name one to read it")
    if not files:
        raise DataError(f"{path}: folder without data; looked for {', '.join(FORMATS)} (also .gz, .zst)")
    return [_file(file) for file in files]


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in order of name; also behind links, each folder once, so that no loop ends nowhere."""
    found: dict[str, list[Path]] = {}
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        folders[:] = [] if real in found else sorted(folders)
        found.setdefault(real, [Path(path, name) for name in names])
    return sorted(file for files in found.values() for file in files if file.is_file())


def _file(path: Path) -> Source:
    kind, compression = _format(path)
    return Source(str(path), "file", kind or "text", compression, path.stat().st_size)


def _format(path: Path) -> tuple[str | None, str | None]:
    """Format and compression by a file's name; no format for a suffix that is not known."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    name = path.with_suffix("") if compression else path
    return FORMATS.get(name.suffix.lower()), compression


def open_source(source: Source) -> tuple[io.BufferedReader, IO[bytes]]:
    """The content of a file source, decompressed, and the file underneath (its position shows the progress).

    Raises:
        DataError: the file can't be opened.
    """
    try:
        raw = source.path.open("rb")
    except OSError as error:
        raise DataError(f"{source.name}: can't be opened ({error.strerror}); check the path and its rights") from None
    if source.compression == "gzip":
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw)), _BUFFER_BYTES), raw
    if source.compression == "zstd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(reader, _BUFFER_BYTES), raw
    return raw, raw


def damage_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged or cut compressed file raises."""
    import zstandard

    return (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)


def estimated_text_bytes(source: Source) -> int | None:
    """About how many bytes of text a source unpacks to; None if that can't be told without reading it."""
    if source.kind != "file":
        return None
    if source.compression == "gzip":
        return _gzip_length(source)
    if source.compression == "zstd" or source.format == "parquet":
        return 3 * source.size_bytes  # the usual ratio for English
    return source.size_bytes


def _gzip_length(source: Source) -> int:
    """The length (modulo 4 GiB) from a gzip file's end, raised until it is no less than the stored size."""
    if source.size_bytes < 18:
        return source.size_bytes
    with source.path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        length = int(struct.unpack("<I", file.read(4))[0])
    while length < source.size_bytes:
        length += 1 << 32
    return length


def describe(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """What lineage records of each source: name; size and hash of a file; commit and licence of a hub data set.

    Raises:
        DataError: the hub can't tell.
    """
    return [{"source": source.name, **_content(source)} for source in sources]


def _content(source: Source) -> dict[str, Any]:
    if source.kind == "file":
        return {"size_bytes": source.size_bytes, "sha256": sha256_file(source.path)}
    return hub.facts(source.name.split(":")[0], "dataset") if source.kind == "hub" else {}


def total_size_bytes(sources: Sequence[Source]) -> int | None:
    """Stored bytes of all sources; None if one of them has no known size."""
    return sum(s.size_bytes for s in sources) if all(s.kind == "file" for s in sources) else None


def lines(source: Source, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream with their numbers from 1, without the byte order mark that some editors write first.

    Raises:
        DataError: the file is damaged; names the last line that could be read.
    """
    number = 0
    try:
        for number, line in enumerate(stream, 1):
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except damage_errors() as error:
        raise damaged(source, f"line {number}", error) from None


def blocks(source: Source, stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The content of a stream in blocks of up to `size` bytes.

    Raises:
        DataError: the file is damaged; names how far it could be read.
    """
    done = 0
    try:
        while block := stream.read(size):
            done += len(block)
            yield block
    except damage_errors() as error:
        raise damaged(source, f"{done} bytes", error) from None


def damaged(source: Source, after: str, error: Exception) -> DataError:
    """The error for a compressed file that breaks off."""
    return DataError(
        f"{source.name}: damaged {source.compression} file after {after} ({error}); "
        "download or pack it again, or leave it out"
    )
