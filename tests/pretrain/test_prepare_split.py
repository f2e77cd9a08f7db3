"""What is held out: by content and nothing else, and never nothing."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data.sources import expand
from fledge.data.text import Document, TextReader, digest
from fledge.errors import DataError
from pretrain.split import Chunk, SplitPlan, Splitter, fraction, plan_by_hash, plan_tail


def reader(*paths: Path) -> TextReader:
    return TextReader(expand(list(paths)))


def plan(share: float, *paths: Path) -> SplitPlan:
    return plan_by_hash(reader(*paths), reader(*paths), share, min_bytes=8)


def document(text: str, is_last_part: bool = True, whole: str | None = None) -> Document:
    whole = text if whole is None else whole
    return Document(text, "a.txt", 1, digest(whole.encode()), len(text.encode()), is_last_part)


def joined(chunks: list[Chunk], split: str) -> list[str]:
    """The documents of one split, put together from their chunks."""
    documents, text = [], ""
    for chunk in chunks:
        if chunk.split == split:
            text += chunk.text
            if chunk.ends_document:
                documents.append(text)
                text = ""
    assert not text
    return documents


def write_rows(path: Path, count: int, first: int = 0) -> Path:
    path.write_text("".join(json.dumps({"text": f"story {n} of many"}) + "\n" for n in range(first, first + count)))
    return path


def test_hundred_documents_are_split_whole(tmp_path: Path) -> None:
    assert plan(0.02, write_rows(tmp_path / "a.jsonl", 1000)) == SplitPlan("documents", 0.02)
    few = plan(1e-9, write_rows(tmp_path / "b.jsonl", 100))
    assert few.split == "documents"


def test_what_will_be_rejected_is_not_all_that_is_held_out(tmp_path: Path) -> None:
    rows = [f"story {n} of many" for n in range(150)]
    lowest = min(fraction(digest(text.encode())) for text in rows)
    short = next(t for t in map(str, range(10**6)) if fraction(digest(t.encode())) < lowest)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [short, *rows]))
    assert plan(1e-9, tmp_path / "a.jsonl").validation_share > lowest


def test_where_nothing_falls_under_the_share_the_lowest_hash_is_held_out(tmp_path: Path) -> None:
    few = plan(1e-9, write_rows(tmp_path / "b.jsonl", 100))
    texts = [f"story {n} of many" for n in range(100)]
    held_out = [text for text in texts if fraction(digest(text.encode())) < few.validation_share]
    assert held_out == [min(texts, key=lambda text: fraction(digest(text.encode())))]


def test_fewer_documents_are_split_in_pieces_of_8_kib(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line of text that is forty letters long\n" * 20000)
    found = plan(0.02, tmp_path / "a.txt")
    assert (found.split, found.piece_characters) == ("pieces", 8192)


def test_a_small_text_is_cut_finer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(100)))
    found = plan(0.02, tmp_path / "a.txt")
    assert found.split == "pieces"
    assert found.piece_characters == 790 // 16
    chunks = list(Splitter(found).chunks(document((tmp_path / "a.txt").read_text())))
    assert joined(chunks, "train")
    assert joined(chunks, "validation")


def test_one_line_can_not_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only one line here\n")
    with pytest.raises(DataError, match="too little text to hold some out"):
        plan(0.02, tmp_path / "a.txt")


def test_a_document_stays_in_its_split_whatever_comes_before_it() -> None:
    texts = [f"story {n}" for n in range(500)]
    splitter = Splitter(SplitPlan("documents", 0.2))
    first = {text: next(splitter.chunks(document(text))).split for text in texts}
    second = {text: next(Splitter(SplitPlan("documents", 0.2)).chunks(document(text))).split for text in texts[::-3]}
    assert all(first[text] == split for text, split in second.items())
    assert 60 < list(first.values()).count("validation") < 140  # 100 expected, standard deviation 9


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["one\n", "two\n", "a longer line\n", "\n", "x"]), max_size=60), st.integers(1, 40))
def test_pieces_lose_nothing_and_keep_neighbours_together(lines: list[str], cut: int) -> None:
    text = "".join(lines)
    splitter = Splitter(SplitPlan("pieces", 0.4, piece_characters=cut))
    chunks = list(splitter.chunks(document(text))) if text else []
    assert "".join(chunk.text for chunk in chunks) == text
    assert sum(chunk.num_bytes for chunk in chunks) == len(text.encode())
    assert all(chunk.ends_document for chunk in chunks)
    assert all(a.split != b.split for a, b in pairwise(chunks))


def test_parts_of_a_long_file_are_split_like_the_whole() -> None:
    lines = [f"line number {n}\n" for n in range(300)]
    found = SplitPlan("pieces", 0.3, piece_characters=15)
    whole = list(Splitter(found).chunks(document("".join(lines))))
    splitter = Splitter(found)
    in_parts = [
        chunk
        for start in range(0, 300, 50)
        for chunk in splitter.chunks(document("".join(lines[start : start + 50]), is_last_part=start == 250))
    ]
    # A piece may end earlier at the end of a part; here pieces are single lines, so it does not.
    for split in ("train", "validation"):
        assert joined(in_parts, split) == joined(whole, split)


def test_the_tail_is_the_last_share(tmp_path: Path) -> None:
    text = "".join(f"{n:04d}\n" for n in range(200))
    (tmp_path / "a.txt").write_text(text)
    found = plan_tail(reader(tmp_path / "a.txt"), 0.1)
    chunks = list(Splitter(found).chunks(document(text)))
    assert [(chunk.split, chunk.text) for chunk in chunks] == [("train", text[:900]), ("validation", text[900:])]
    splitter = Splitter(found)
    parts = [c for s in range(0, 1000, 300) for c in splitter.chunks(document(text[s : s + 300], s == 900, text))]
    assert joined(parts, "train") == [text[:900]]
    assert joined(parts, "validation") == [text[900:]]


def test_the_tail_needs_a_single_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--validation-tail takes the end of one text"):
        plan_tail(reader(write_rows(tmp_path / "a.jsonl", 2)), 0.1)
