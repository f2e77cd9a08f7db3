"""Token shards: text as ids on disk, memory-mapped, so that training reads any place of any size at once.

A folder holds `index.json` and, for each split, `<split>-00000.bin`, `<split>-00001.bin` ...: little-endian
uint16 (uint32 above 65,536 ids), to be read as one long stream that begins with one end-of-text id and then
alternates document, end-of-text, document, end-of-text ...
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fledge.atomic import disk_errors
from fledge.errors import DataError
from fledge.tokens import TextTokenizer

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
INDEX = "index.json"
VERSION = 1
# 256 MB of uint16: few files for a big corpus, and small enough to copy one by one.
SHARD_TOKENS = 1 << 27


@dataclass(frozen=True)
class SplitIndex:
    """What `index.json` says of one split."""

    name: Split
    files: list[dict[str, Any]]  # {"file": name, "tokens": count}, in order
    num_tokens: int
    num_bytes: int  # UTF-8 bytes of the documents' text
    num_documents: int


@dataclass(frozen=True)
class Index:
    """`index.json` of a shards folder, checked against the files beside it."""

    folder: Path
    dtype: np.dtype[Any]
    tokenizer: dict[str, Any]  # fingerprint, vocab_size, end_of_text_id
    splits: dict[str, SplitIndex]
    facts: dict[str, Any]  # the whole file: sources, rejects, how the split was made


class ShardWriter:
    """Appends the documents of one split to its shard files in an unfinished folder."""

    def __init__(self, folder: Path, split: Split, tokenizer: TextTokenizer, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._end = tokenizer.end_of_text_id
        self._dtype = dtype_for(tokenizer.vocab_size)
        self._tokens: list[int] = []  # in each shard
        self._file: Any = None
        self.num_bytes = self.num_documents = 0

    @property
    def num_tokens(self) -> int:
        """Ids written, document ends included."""
        return sum(self._tokens)

    def append(self, ids: np.ndarray, num_bytes: int, ends_document: bool = True) -> None:
        """Write a document, or the next part of one.

        Args:
            ids: any integer dtype, (n,), without the document end.
            num_bytes: UTF-8 bytes of the text that they stand for.
        """
        if not self._tokens:
            self._write(np.array([self._end]))
        self._write(ids)
        self.num_bytes += num_bytes
        if ends_document:
            self._write(np.array([self._end]))
            self.num_documents += 1

    def _write(self, ids: np.ndarray) -> None:
        start = 0
        while start < len(ids):
            if self._file is None or self._tokens[-1] == self._shard_tokens:
                self._next_shard()
            count = min(len(ids) - start, self._shard_tokens - self._tokens[-1])
            with disk_errors(self._folder):
                self._file.write(ids[start : start + count].astype(self._dtype).tobytes())
            self._tokens[-1] += count
            start += count

    def _next_shard(self) -> None:
        self.close()
        self._tokens.append(0)
        with disk_errors(self._folder):
            self._file = self._path(len(self._tokens) - 1).open("wb")

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._split}-{number:05d}.bin"

    def close(self) -> None:
        """Force what was written to disk and close the shard."""
        file, self._file = self._file, None
        if file is not None:
            with disk_errors(self._folder), file:
                file.flush()
                os.fsync(file.fileno())

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here; everything up to here is on disk."""
        if self._file is not None:
            with disk_errors(self._folder):
                self._file.flush()
                os.fsync(self._file.fileno())
        return {"tokens": self._tokens, "bytes": self.num_bytes, "documents": self.num_documents}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state: what was written after it is cut off.

        Raises:
            DataError: the shards have less than the state says.
        """
        self._tokens = list(state["tokens"])
        self.num_bytes, self.num_documents = state["bytes"], state["documents"]
        for number, tokens in enumerate(self._tokens):
            path, size = self._path(number), tokens * self._dtype.itemsize
            if not path.is_file() or path.stat().st_size < size:
                raise DataError(f"{path}: cut short; start again with a new --out")
        for path in self._folder.glob(f"{self._split}-*.bin"):
            if int(path.stem.rsplit("-", 1)[1]) >= len(self._tokens):
                path.unlink()
        if self._tokens:
            path = self._path(len(self._tokens) - 1)
            os.truncate(path, self._tokens[-1] * self._dtype.itemsize)
            self._file = path.open("ab")

    def index(self) -> dict[str, Any]:
        """This split's part of `index.json`."""
        files = [{"file": self._path(n).name, "tokens": tokens} for n, tokens in enumerate(self._tokens)]
        return {"tokens": self.num_tokens, "bytes": self.num_bytes, "documents": self.num_documents, "files": files}


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def write_index(
    folder: Path, tokenizer: TextTokenizer, writers: dict[Split, ShardWriter], facts: dict[str, Any]
) -> None:
    """Close the writers and write `index.json`; only with it is the folder complete."""
    for writer in writers.values():
        writer.close()
    content = {
        "version": VERSION,
        "dtype": dtype_for(tokenizer.vocab_size).name,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text_id": tokenizer.end_of_text_id,
        },
        "splits": {split: writer.index() for split, writer in writers.items()},
        **facts,
    }
    (folder / INDEX).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


class TokenStream:
    """One split's shards as one long row of ids, memory-mapped."""

    def __init__(self, index: Index, split: SplitIndex) -> None:
        self.num_tokens, self.num_bytes = split.num_tokens, split.num_bytes
        self.num_documents = split.num_documents
        self.end_of_text_id = int(index.tokenizer["end_of_text_id"])
        self._shards = [np.memmap(index.folder / entry["file"], dtype=index.dtype, mode="r") for entry in split.files]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return self.num_tokens

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` ids from `start` on, int64 (count,), also across shards.

        Raises:
            DataError: the stream ends before that.
        """
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise DataError(f"tokens {start} to {start + count} asked for, the split has {self.num_tokens}")
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces = []
        while count > 0:
            offset = start - int(self._starts[number])
            piece = self._shards[number][offset : offset + count]
            pieces.append(piece)
            start, count, number = start + len(piece), count - len(piece), number + 1
        return np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, dtype=np.int64)

    def blocks(self, size: int = 1 << 20) -> Iterator[np.ndarray]:
        """All ids in order, in blocks of up to `size`."""
        for start in range(0, self.num_tokens, size):
            yield self.read(start, min(size, self.num_tokens - start))


def find_folder(path: str | Path) -> Path:
    """The shards folder that a path means: the folder itself, or `shards/` in a `pretrain prepare` run.

    Raises:
        DataError: there are no finished shards.
    """
    for folder in (Path(path), Path(path) / "shards"):
        if (folder / INDEX).is_file():
            return folder
    if not Path(path).exists():
        raise DataError(f"{path}: no such folder; prepare shards with 'fledge pretrain prepare'")
    raise DataError(f"{path}: no finished token shards (no {INDEX}); prepare them, or --resume that run")


def read_index(path: str | Path) -> Index:
    """The index of a shards folder or run, after checking that every shard is as long as it says.

    Raises:
        DataError: no shards, a damaged index, or shards missing or cut short.
    """
    folder = find_folder(path)
    try:
        facts = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        version = facts["version"]
        dtype = np.dtype(facts["dtype"]).newbyteorder("<")
        splits = {
            name: SplitIndex(name, s["files"], s["tokens"], s["bytes"], s["documents"])
            for name, s in facts["splits"].items()
        }
        index = Index(folder, dtype, facts["tokenizer"], splits, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / INDEX}: damaged ({error}); prepare the shards again") from None
    if version != VERSION:
        raise DataError(f"{folder / INDEX}: version {version}, this fledge reads {VERSION}; prepare the shards again")
    for split in splits.values():
        for entry in split.files:
            _check_shard(folder / entry["file"], entry["tokens"] * dtype.itemsize)
    return index


def _check_shard(path: Path, size: int) -> None:
    if not path.is_file():
        raise DataError(f"{path}: shard is missing; copy it again or prepare the shards again")
    found = path.stat().st_size
    if found != size:
        what = "cut short" if found < size else "too long"
        raise DataError(f"{path}: {what} ({found} bytes, expected {size}); copy it again or prepare the shards again")


def open_split(path: str | Path, split: Split) -> TokenStream:
    """One split of a shards folder or run.

    Raises:
        DataError: as `read_index`; or the split has no text.
    """
    index = read_index(path)
    if split not in index.splits or not index.splits[split].num_tokens:
        raise DataError(f"{index.folder}: no text in the {split} split; prepare it with more text or another split")
    return TokenStream(index, index.splits[split])


def check_tokenizer(path: str | Path, tokenizer: TextTokenizer) -> None:
    """Make sure that shards were made with a tokenizer.

    Raises:
        DataError: they were made with another one; says which vocabulary sizes differ.
    """
    index = read_index(path)
    if index.tokenizer["fingerprint"] == tokenizer.fingerprint:
        return
    sizes = (index.tokenizer["vocab_size"], tokenizer.vocab_size)
    detail = f"vocabulary {sizes[0]}, expected {sizes[1]}" if sizes[0] != sizes[1] else "same size, other tokens"
    raise DataError(
        f"{index.folder}: made with another tokenizer ({detail}); prepare the text again with the model's tokenizer"
    )


@contextlib.contextmanager
def writers_in(folder: Path, tokenizer: TextTokenizer) -> Iterator[dict[Split, ShardWriter]]:
    """One writer a split; at the end of the block each is closed, even where closing another fails."""
    writers: dict[Split, ShardWriter] = {split: ShardWriter(folder, split, tokenizer) for split in SPLITS}
    with contextlib.ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.close)
        yield writers
