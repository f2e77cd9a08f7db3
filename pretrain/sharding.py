"""One pass over text that writes token shards: reject, split, encode in threads, write in order, checkpoint."""

import contextlib
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fledge import checkpoints, console
from fledge.atomic import disk_errors, sync_file
from fledge.data import sources as src
from fledge.data.digests import DigestSet
from fledge.data.rows import Reject
from fledge.data.sources import Source
from fledge.data.text import Cursor, Document, RowCounts, TextReader
from fledge.errors import DataError
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer
from pretrain.config import PrepareConfig
from pretrain.split import Chunk, SplitPlan, Splitter
from tokenizer import shards
from tokenizer.bulk import BulkEncoder, bulk_encoder
from tokenizer.shards import Split

# Not `.partial`: a resumed run goes on with this folder instead of clearing it.
_UNFINISHED = ".shards-unfinished"
_REJECTS = "rejects.jsonl"
# Enough text a task that handing it over costs nothing, little enough that a few in flight cost no memory.
_TASK_BYTES = 1 << 20
# Text between checkpoints for each document in the last one: they write 16 to 32 bytes a document, so all together less
# than there is text.
_CHECKPOINT_BYTES = 64


@dataclass(frozen=True)
class Phase:
    """Sources that are read one after the other, and where their text goes if that is given."""

    sources: list[Source]
    split: Split = "train"


def reader_of(
    config: PrepareConfig, sources: list[Source], on_reject: Callable[[Reject], None] | None = None
) -> TextReader:
    """A reader as the config has it."""
    return TextReader(sources, config.text_field, config.html, config.max_bad_share, on_reject)


def plan_of(config: PrepareConfig) -> SplitPlan:
    """The split plan that is frozen in a config."""
    assert config.split != "auto"
    return SplitPlan(config.split, config.validation_share, config.piece_characters, config.train_characters)


class Sharding:
    """The pass over the input of a run, from where its last checkpoint stood.

    Everything is written to a folder under a dot name, which gets its own name, `shards`, in the end.
    """

    def __init__(self, config: PrepareConfig, folder: RunFolder, tokenizer: TextTokenizer, phases: list[Phase]) -> None:
        self._config, self._folder, self._tokenizer, self._phases = config, folder, tokenizer, phases
        self._encoder: BulkEncoder
        self._encoder, _ = bulk_encoder(tokenizer, config.encoder, [])
        self._unfinished = folder.path / _UNFINISHED
        self._seen = DigestSet()
        self._counts: Counter[str] = Counter()
        self._rejects: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()  # documents by the bit length of their tokens
        self._length = 0  # tokens of the document being written
        self._start_phase, self._start, self._start_rows = 0, Cursor(), RowCounts()
        self._step = 0
        self._is_inside_document = self._is_kept = False
        self._files = contextlib.ExitStack()
        with disk_errors(self._unfinished):
            self._open_folder()

    def _open_folder(self) -> None:
        checkpoint = self._folder.resumes_from
        if checkpoint is None:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished.mkdir()
        self._writers = self._files.enter_context(shards.writers_in(self._unfinished, self._tokenizer))
        rejects = self._unfinished / _REJECTS
        if checkpoint is not None:
            self._restore(checkpoint, rejects)
        # An excerpt of a broken row may hold half a surrogate pair.
        rejects_file = rejects.open("a", encoding="utf-8", errors="backslashreplace")
        self._rejects_file = self._files.enter_context(rejects_file)

    def run(self) -> None:
        """Go through the input from where the last checkpoint stood and publish the shards."""
        total = sum(src.total_size_bytes(phase.sources) or 0 for phase in self._phases)
        threads = self._config.threads if self._encoder.runs_in_threads else 1
        with ThreadPoolExecutor(threads) as pool, console.progress("preparing", total or None, "B") as progress:
            self._pool, self._progress, self._max_pending = pool, progress, 2 * threads + 1
            self._pending: deque[Future[list[tuple[Chunk, np.ndarray]]]] = deque()
            self._task: list[Chunk] = []
            self._task_bytes = self._bytes_since_checkpoint = 0
            self._num_saved = len(self._seen)
            self._read_phase(self._start_phase, self._start, self._start_rows)
            for number in range(self._start_phase + 1, len(self._phases)):
                self._read_phase(number, Cursor(), RowCounts())
            self._drain()
        self._publish()

    def _read_phase(self, number: int, start: Cursor, rows: RowCounts) -> None:
        phase = self._phases[number]
        reader = reader_of(self._config, phase.sources, self._reject)
        splitter = Splitter(plan_of(self._config), phase.split)
        before = sum(src.total_size_bytes(earlier.sources) or 0 for earlier in self._phases[:number])
        for document in reader.documents(start, rows):
            if self._accept(document):
                for chunk in splitter.chunks(document):
                    self._add(chunk)
            self._progress.reach(before + reader.size_bytes_done, f"{self._counts['documents']} documents")
            if not self._is_inside_document:
                self._maybe_checkpoint(number, reader)
            elif self._folder.stop_requested:  # what came since the last checkpoint is read again
                raise self._folder.interrupted(self._step)

    # --- what is kept ---

    def _accept(self, document: Document) -> bool:
        """Whether a document, or a further part of it, is kept; a rejected one is written down."""
        if not self._is_inside_document:
            reason = self._reason_against(document)
            self._is_kept = reason is None
            if reason:
                self._reject(Reject(document.source, document.position, reason, "", document.text[:200]))
            else:
                self._counts["documents"] += 1
        self._is_inside_document = not document.is_last_part
        return self._is_kept

    def _reason_against(self, document: Document) -> str | None:
        if document.is_last_part:  # a document in several parts is neither
            if not document.text.strip():
                return "empty"
            if document.num_bytes < self._config.min_bytes:
                return "too short"
        return None if self._seen.add(document.digest) else "duplicate"

    def _reject(self, reject: Reject) -> None:
        self._rejects[reject.reason] += 1
        with disk_errors(self._unfinished):
            self._rejects_file.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")

    # --- encoding and writing, in order ---

    def _add(self, chunk: Chunk) -> None:
        self._task.append(chunk)
        self._task_bytes += chunk.num_bytes
        self._bytes_since_checkpoint += chunk.num_bytes
        if self._task_bytes >= _TASK_BYTES:
            self._submit()

    def _submit(self) -> None:
        self._pending.append(self._pool.submit(self._encode, self._task))
        self._task, self._task_bytes = [], 0
        while len(self._pending) > self._max_pending:
            self._write(self._pending.popleft().result())

    def _encode(self, chunks: list[Chunk]) -> list[tuple[Chunk, np.ndarray]]:
        return list(zip(chunks, self._encoder.encode([chunk.text for chunk in chunks]), strict=True))

    def _write(self, encoded: list[tuple[Chunk, np.ndarray]]) -> None:
        for chunk, ids in encoded:
            self._writers[chunk.split].append(ids, chunk.num_bytes, chunk.ends_document)
            self._length += len(ids)
            if chunk.ends_document:
                self._lengths[self._length.bit_length()] += 1
                self._length = 0

    def _drain(self) -> None:
        self._submit()
        while self._pending:
            self._write(self._pending.popleft().result())

    # --- being stopped ---

    def _maybe_checkpoint(self, phase: int, reader: TextReader) -> None:
        due_bytes = max(self._config.checkpoint_megabytes * 1e6, _CHECKPOINT_BYTES * self._num_saved)
        due = self._bytes_since_checkpoint >= due_bytes
        if due or self._folder.stop_requested:
            self._drain()
            self._checkpoint(phase, reader)
            if self._folder.stop_requested:
                raise self._folder.interrupted(self._step)

    def _checkpoint(self, phase: int, reader: TextReader) -> None:
        self._step += 1
        self._bytes_since_checkpoint, self._num_saved = 0, len(self._seen)
        self._rejects_file.flush()
        state = {
            "phase": phase,
            "cursor": reader.cursor,
            "rows": reader.rows,
            "writers": {split: writer.state() for split, writer in self._writers.items()},
            "rejects_bytes": (self._unfinished / _REJECTS).stat().st_size,
            "counts": self._counts,
            "rejects": self._rejects,
            "lengths": self._lengths,
        }
        with self._folder.checkpoint(self._step) as part:
            (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
            self._seen.save(part / "seen.bin")
        checkpoints.prune(self._folder.checkpoints, keep=2)

    def _restore(self, checkpoint: Path, rejects: Path) -> None:
        """Take up the state of a checkpoint; what was written after it is cut off."""
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        self._seen = DigestSet.load(checkpoint / "seen.bin")
        for split, writer in self._writers.items():
            writer.restore(state["writers"][split])
        with rejects.open("r+b") as file:
            file.truncate(state["rejects_bytes"])
        self._counts, self._rejects = Counter(state["counts"]), Counter(state["rejects"])
        self._lengths = Counter({int(bits): n for bits, n in state["lengths"].items()})
        self._start_phase, self._start = state["phase"], Cursor(*state["cursor"])
        self._start_rows = RowCounts(*state["rows"])
        self._step = checkpoints.step_of(checkpoint)

    # --- the end ---

    def close(self) -> None:
        """Close the files, finished or not."""
        self._files.close()

    def _publish(self) -> None:
        """Complete the folder and give it its name.

        Raises:
            DataError: nothing is left of the input.
        """
        self.close()
        for split in shards.SPLITS:
            if not self._writers[split].num_documents:
                reasons = ", ".join(f"{count} {reason}" for reason, count in self._rejects.most_common())
                raise DataError(
                    f"{', '.join(self._config.input)}: no document is left in the {split} part "
                    f"({reasons or 'nothing was rejected'}); see {self._unfinished / _REJECTS}"
                )
        facts = {
            "documents": self._counts["documents"],
            "split": str(plan_of(self._config)),
            "encoder": self._config.encoder,
            "sources": [source.name for phase in self._phases for source in phase.sources],
            "rejects": dict(self._rejects.most_common()),
            "lengths": {str(bits): self._lengths[bits] for bits in sorted(self._lengths)},
        }
        with disk_errors(self._unfinished):
            self._tokenizer.save(self._unfinished)
            shards.write_index(self._unfinished, self._tokenizer, self._writers, facts)
            for file in self._unfinished.iterdir():
                sync_file(file)
            self._unfinished.rename(self._folder.path / "shards")
