"""Which text is held out for validation: by a hash of its content, so by nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from fledge.data.text import Document, TextReader, digest, pieces
from fledge.errors import DataError
from tokenizer.shards import Split

Method = Literal["documents", "pieces", "tail", "input"]

# With fewer documents the held-out share would be one or none of them: pieces of documents fall instead.
MIN_DOCUMENTS = 100
PIECE_CHARACTERS = 8192
# A text this small is cut finer, so that there is something to hold out.
_MIN_PIECES = 16
# Of so many units one falls under a share of 0.02 with probability 1 - 2e-9; below, it is looked after.
_SCANNED_UNITS = 1000


@dataclass(frozen=True)
class SplitPlan:
    """How a corpus is split, as it is frozen into the run's config."""

    split: Method
    validation_share: float
    piece_characters: int = 0  # pieces
    train_characters: int = 0  # tail: where the held-out rest begins

    def __str__(self) -> str:
        share = f"{self.validation_share:.4g}"
        if self.split == "input":
            return "validation text given by --validation-input"
        if self.split == "tail":
            return f"the last {share} of the file is held out"
        if self.split == "documents":
            return f"documents with a content hash below {share} are held out"
        return (
            f"fewer than {MIN_DOCUMENTS} documents: they are cut at line ends into pieces of about "
            f"{self.piece_characters} characters, and those with a content hash below {share} are held out"
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that goes to one split as it is: a document, or a part of one."""

    split: Split
    text: str
    num_bytes: int
    ends_document: bool


def fraction(text_digest: bytes) -> float:
    """A digest as a number in [0, 1); its other half serves deduplication."""
    return (int.from_bytes(text_digest[8:16], "little") >> 11) / 2**53


def plan_by_hash(reader: TextReader, again: TextReader, share: float, min_bytes: int) -> SplitPlan:
    """Choose between documents and pieces, and make sure that something is held out.

    Args:
        reader, again: two readers of the same input.
        min_bytes: shorter documents, and empty ones, will be rejected; they can't be what is held out.
    Raises:
        DataError: there is too little text to hold any of it out.
    """
    num_documents = num_characters = 0
    fractions: list[float] = []
    for document in reader.documents():
        num_characters += len(document.text)
        num_documents += document.is_last_part
        if _is_kept(document, min_bytes):
            fractions.append(fraction(document.digest))
        if num_documents == _SCANNED_UNITS:
            return SplitPlan("documents", share)
    if num_documents >= MIN_DOCUMENTS and fractions:
        return SplitPlan("documents", _raised(share, fractions))
    size = PIECE_CHARACTERS
    if num_characters < _MIN_PIECES * size:
        size = max(1, num_characters // _MIN_PIECES)
    texts = (p for d in again.documents() if _is_kept(d, min_bytes) for p in pieces(d.text, size))
    fractions = [fraction(digest(piece.encode())) for piece in islice(texts, _SCANNED_UNITS)]
    if len(fractions) < 2:
        raise DataError(
            f"{reader.sources[0].name}: too little text to hold some out (it has {num_characters} characters and "
            "can't be cut at line ends); give more, or --validation-input"
        )
    return SplitPlan("pieces", _raised(share, fractions), piece_characters=size)


def _is_kept(document: Document, min_bytes: int) -> bool:
    return not document.is_last_part or (document.num_bytes >= min_bytes and bool(document.text.strip()))


def _raised(share: float, fractions: list[float]) -> float:
    """The share, raised to just above the lowest fraction where nothing would be held out."""
    return max(share, min(fractions) + 2**-53) if len(fractions) < _SCANNED_UNITS else share


def plan_tail(reader: TextReader, share: float) -> SplitPlan:
    """Hold out the last part of a single file, as nanoGPT does.

    Raises:
        DataError: there are several documents.
    """
    num_characters = num_documents = 0
    for document in reader.documents():
        num_characters += len(document.text)
        num_documents += document.is_last_part
        if num_documents > 1:
            raise DataError("--validation-tail takes the end of one text; there are several documents here")
    return SplitPlan("tail", share, train_characters=int(num_characters * (1 - share)))


class Splitter:
    """Sends documents, in order, to the splits of a plan.

    Args:
        whole: with the method `input`, the split that everything goes to.
    """

    def __init__(self, plan: SplitPlan, whole: Split = "train") -> None:
        self._plan, self._whole = plan, whole
        self._done_characters = 0
        self._open: Split | None = None  # the split to which the current document's last piece went

    def chunks(self, document: Document) -> Iterator[Chunk]:
        """The chunks of a document or of one part of it."""
        if self._plan.split == "pieces":
            yield from self._pieces(document)
        elif self._plan.split == "tail":
            yield from self._tail(document)
        else:
            split = self._whole if self._plan.split == "input" else self._by_hash(document.digest)
            yield Chunk(split, document.text, document.num_bytes, document.is_last_part)

    def _by_hash(self, text_digest: bytes) -> Split:
        return "validation" if fraction(text_digest) < self._plan.validation_share else "train"

    def _pieces(self, document: Document) -> Iterator[Chunk]:
        """Neighbouring pieces of one split stay one text; each such run is a document of its split."""
        run: list[str] = []
        for piece in pieces(document.text, self._plan.piece_characters):
            split = self._by_hash(digest(piece.encode()))
            if self._open not in (None, split):
                yield _chunk(self._open, "".join(run), True)
                run = []
            self._open = split
            run.append(piece)
        yield _chunk(self._open, "".join(run), document.is_last_part)
        if document.is_last_part:
            self._open = None

    def _tail(self, document: Document) -> Iterator[Chunk]:
        left = self._plan.train_characters - self._done_characters
        self._done_characters += len(document.text)
        train, held_out = document.text[: max(0, left)], document.text[max(0, left) :]
        if train:
            yield _chunk("train", train, self._done_characters >= self._plan.train_characters)
        if held_out:
            yield _chunk("validation", held_out, document.is_last_part)


def _chunk(split: Split | None, text: str, ends_document: bool) -> Chunk:
    assert split is not None
    return Chunk(split, text, len(text.encode()), ends_document)
