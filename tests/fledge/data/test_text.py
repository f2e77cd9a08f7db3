"""Documents from every format, what is wrong with bad rows, and memory that does not grow."""

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import text as text_module
from fledge.data.rows import Reject
from fledge.data.sources import describe, expand
from fledge.data.text import Cursor, Document, TextReader, pieces, safe_cut
from fledge.errors import DataError

if TYPE_CHECKING:
    from conftest import Hub


def read(path: Path, **options: object) -> list[Document]:
    return list(TextReader(expand([path]), **options).documents())  # type: ignore[arg-type]


def texts(path: Path, **options: object) -> list[str]:
    return [document.text for document in read(path, **options)]


def rejects(path: Path, **options: object) -> list[Reject]:
    found: list[Reject] = []
    list(TextReader(expand([path]), max_bad_share=1.0, on_reject=found.append, **options).documents())  # type: ignore[arg-type]
    return found


ROWS = [{"text": "one\r\n two"}, {"text": "caf\u00e9 \u4f60", "id": 3}, {"text": ""}]
EXPECTED = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def test_a_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    content = "\ufefffirst\r\nsecond \u4f60\n\n".encode()
    (tmp_path / "a.txt").write_bytes(content)
    (document,) = read(tmp_path / "a.txt")
    assert document.text.encode() == content
    assert (document.num_bytes, document.position, document.is_last_part) == (len(content), 1, True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz"])
def test_json_rows_are_documents(tmp_path: Path, name: str) -> None:
    import zstandard

    content = json.dumps(ROWS).encode() if ".json." in name or name.endswith(".json") else LINES
    if name.endswith(".gz"):
        content = gzip.compress(content)
    if name.endswith(".zst"):
        content = zstandard.compress(content)
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == EXPECTED
    assert [document.position for document in read(tmp_path / name)] == [1, 2, 3]


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(LINES)
    assert texts(tmp_path / "a.json") == EXPECTED


def test_tables_have_a_document_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"with, comma\nand line"\n2,plain\n')
    (tmp_path / "a.tsv").write_text('id\ttext\n1\tan "unfinished quote\n')
    assert texts(tmp_path / "a.csv") == ["with, comma\nand line", "plain"]
    assert texts(tmp_path / "a.tsv") == ['an "unfinished quote']


def test_parquet_columns_are_documents(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": EXPECTED, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == EXPECTED
    with pytest.raises(DataError, match="no column 'body'; columns: text, n"):
        read(tmp_path / "a.parquet", text_field="body")


def test_html_gives_its_main_text(tmp_path: Path) -> None:
    sentence = "The miller walked to the market and sold nine sacks of flour to the baker. "
    page = f"<html><body><nav>Home About</nav><article><p>{sentence * 5}</p></article></body></html>"
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "a.jsonl").write_text(json.dumps({"page": page}) + "\n")
    for found in (texts(tmp_path / "a.html"), texts(tmp_path / "a.jsonl", text_field="page", is_html=True)):
        assert found == [(sentence * 5).strip()]


def test_the_village_tells_stories() -> None:
    documents = list(TextReader(expand(["village:hamlet/stories#5"])).documents())
    assert len(documents) == 5
    assert all(document.text for document in documents)


def texts_of_the_hub(name: str) -> list[str]:
    return [document.text for document in TextReader(expand([name])).documents()]


def test_hub_data_sets_are_streamed_at_one_commit(hub_server: "Hub") -> None:
    commit = hub_server.put("owner/rows", {"a.jsonl": b'{"text": "one"}\n{"text": "two"}\n'}, "datasets")
    assert texts_of_the_hub("owner/rows") == ["one", "two"]
    hub_server.put("owner/rows", {"a.jsonl": b'{"text": "other"}\n'}, "datasets")
    assert texts_of_the_hub("owner/rows") == ["one", "two"]
    assert describe(expand(["owner/rows"])) == [{"source": "owner/rows", "commit": commit}]


def test_a_data_set_of_several_subsets_wants_one_by_name(hub_server: "Hub") -> None:
    card = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    files = {"README.md": card, "a.jsonl": b'{"text": "of a"}\n', "b.jsonl": b'{"text": "of b"}\n'}
    hub_server.put("owner/rows", files, "datasets", cardData={"license": "mit"})
    with pytest.raises(DataError, match=r"owner/rows: has several subsets \(a, b\); give owner/rows:a$"):
        texts_of_the_hub("owner/rows")
    assert texts_of_the_hub("owner/rows:b") == ["of b"]
    assert describe(expand(["owner/rows:b"]))[0]["licence"] == "mit"


def test_an_unreachable_hub_is_one_line(hub_server: "Hub", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.hub._TIMEOUT_S", 0.2)
    hub_server.is_silent.set()
    with pytest.raises(DataError, match=r"^owner/name: no such path here, and the hub can't give it \(.*timed out.*$"):
        texts_of_the_hub("owner/name")


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "cut', "broken JSON", "Unterminated string"),
        (b'{"body": "x", "id": 1}', "no field 'text'", "fields: body, id; choose with --text-field"),
        (b'{"text": 3}', "'text' is not text", "it is int"),
        (b'["text"]', "not an object", "expected"),
        (b'{"text": "caf\xe9"}', "not UTF-8", "byte 0xe9 at offset 13; convert it"),
        (b'{"text": "\\ud800"}', "not UTF-8", "half a surrogate pair"),
    ],
)
def test_bad_rows_are_told_with_line_and_reason(tmp_path: Path, line: bytes, reason: str, detail: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    (found,) = rejects(tmp_path / "a.jsonl")
    assert (found.position, found.reason) == (3, reason)
    assert detail in found.detail


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 au lait", r"a\.txt:1: not UTF-8 \(byte 0xe9 at offset 3"),
        ("text".encode("utf-16"), r"a\.txt:1: not UTF-8 \(UTF-16; convert it"),
        (b"text\0more" + b"x" * 9000, r"binary, not text"),
    ],
)
def test_a_file_that_is_no_text_stops_the_run(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "in")


def test_bad_rows_below_the_share_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES * 40 + b"broken\n")
    assert len(read(tmp_path / "a.jsonl")) == 120
    with pytest.raises(DataError, match=r"a\.jsonl:121: broken JSON .*1 of 121 rows are bad.*--max-bad-share"):
        read(tmp_path / "a.jsonl", max_bad_share=0.001)


def test_too_many_bad_rows_stop_early(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"broken\n" * 5000)
    with pytest.raises(DataError, match="1000 of 1000 rows"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz"])
@pytest.mark.parametrize("damage", ["cut", "no gzip", "checksum"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    packed = gzip.compress(b"".join(b'{"text": "number %d"}\n' % n for n in range(50000)))
    flipped = bytearray(packed)
    flipped[-6] ^= 0xFF  # in the checksum
    broken = {"cut": packed[: len(packed) // 2], "no gzip": b"plain text", "checksum": bytes(flipped)}[damage]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(DataError, match=rf"{name}: damaged gzip file after (line )?\d+.*download or pack it again"):
        read(tmp_path / name)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"a\.parquet: damaged parquet file"):
        read(tmp_path / "a.parquet")


def test_broken_json_lists_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"},')
    with pytest.raises(DataError, match=r"a\.json: broken JSON"):
        read(tmp_path / "a.json")


def test_a_reader_goes_on_from_any_cursor(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name}{n}"}}\n' for n in range(5)) + "bad\n")
    reader = TextReader(expand([tmp_path]), max_bad_share=1)
    cursors = [(document.text, reader.cursor) for document in reader.documents()]
    everything = [text for text, _ in cursors]
    for place, (_, cursor) in enumerate(cursors, 1):
        again = TextReader(expand([tmp_path]), max_bad_share=1)
        assert [document.text for document in again.documents(cursor)] == everything[place:]
    assert [d.text for d in reader.documents(Cursor())] == everything


def test_a_long_file_comes_in_parts_with_one_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f"line {n} caf\u00e9\n" for n in range(2000))
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    (whole,) = read(tmp_path / "a.txt")
    monkeypatch.setattr(text_module, "PART_BYTES", 1000)
    parts = read(tmp_path / "a.txt")
    assert len(parts) > 10
    assert "".join(part.text for part in parts) == content
    assert [part.is_last_part for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.digest for part in parts} == {whole.digest}


@given(st.text(alphabet="ab \n\u4f60"), st.integers(1, 20))
def test_pieces_join_to_the_text_and_end_at_line_ends(text: str, size: int) -> None:
    found = list(pieces(text, size))
    assert "".join(found) == text
    assert all(piece.endswith("\n") and len(piece) > size for piece in found[:-1])


@given(st.text(alphabet="ab. \n\t\u4f60"))
def test_safe_cuts_stand_between_ink(text: str) -> None:
    cut = safe_cut(text)
    before, after = text[:cut], text[cut:]
    assert (
        cut == 0
        or (before[-1] == "\n" and not before[-2].isspace() and not after[0].isspace())
        or (before[-1] in "ab" and after[0] == " " and after[1] in "ab")
    )


def test_a_long_text_is_cut_at_a_line_end_too() -> None:
    text = "some words\n" * 20_000 + "no end"
    assert safe_cut(text) == 220_000


def test_no_piece_begins_with_a_blank_line() -> None:
    assert list(pieces("one\n\n\ntwo\n  three\nfour\n", 3)) == ["one\n\n\n", "two\n  three\n", "four\n"]


def test_of_many_bad_rows_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n3\n4\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not an object.*2 of 3 rows are bad"):
        read(tmp_path / "a.jsonl")
