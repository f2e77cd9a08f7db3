"""Rows of fields from any source."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from fledge.data import rows
from fledge.errors import DataError

WANTED = [{"text": "Hello", "label": "ham"}, {"text": "WIN\u00a3", "label": "spam"}]


def as_it_is(row: rows.Row) -> rows.Row:
    return row


def write_each_format(folder: Path) -> list[Path]:
    lines = "".join(json.dumps(row) + "\n" for row in WANTED)
    table = "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in WANTED)
    (folder / "a.json").write_text(json.dumps(WANTED))
    (folder / "b.json").write_text(lines)
    (folder / "c.jsonl").write_text(lines)
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "e.csv").write_text(table)
    (folder / "f.tsv").write_text(table.replace(",", "\t"))
    parquet.write_table(pyarrow.Table.from_pylist(WANTED), folder / "g.parquet")
    return sorted(folder.iterdir())


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    for file in write_each_format(tmp_path):
        assert [row.values for row in rows.read([str(file)]).rows] == WANTED, file


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    files = {file.name: file for file in write_each_format(tmp_path)}
    assert rows.read([str(files["c.jsonl"])]).rows[1].where == f"{files['c.jsonl']}:2"
    assert rows.read([str(files["e.csv"])]).rows[1].where == f"{files['e.csv']}:3"


def test_the_village_gives_rows() -> None:
    (row,) = rows.read(["village:hamlet/instructions#1"]).rows
    assert [m["role"] for m in row.values["messages"]] == ["user", "assistant"]


def test_few_bad_rows_are_told_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n' * 99 + "[1]\n" + '{"a": 1}\n' * 100)
    found = rows.read([str(file)])
    assert len(found.rows) == 199
    assert [r.position for r in found.rejects] == [100]
    assert f"passed over {file}:100: not an object" in capsys.readouterr().err


def test_many_bad_rows_are_an_error_with_the_first(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{broken\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: broken JSON .* 1 of 2 rows are bad"):
        rows.read([str(file)])


def test_plain_text_is_refused_unless_its_lines_can_be_parsed(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ham\tHello\nspam\tWIN\n")
    with pytest.raises(DataError, match=r"a\.txt: text, where rows of fields are wanted"):
        rows.read([str(file)])

    def parse(line: str) -> dict[str, str]:
        label, found, text = line.partition("\t")
        if not found:
            raise ValueError("no tab")
        return {"label": label, "text": text}

    assert [r.values["label"] for r in rows.read_as(as_it_is, [str(file)], parse_line=parse).rows] == ["ham", "spam"]
    file.write_text("ham Hello\n")
    with pytest.raises(DataError, match=r"a\.txt:1: no tab"):
        rows.read_as(as_it_is, [str(file)], parse_line=parse)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"label": "ham"}\n'),
        ("a.json", '[{"label": "ham"}]'),
        ("a.csv", "label\nham\n"),
        ("a.tsv", "label\nham\n"),
        ("a.txt", "ham\n"),
    ],
)
def test_a_byte_order_mark_belongs_to_no_row(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    (row,) = rows.read_as(as_it_is, [str(tmp_path / name)], parse_line=lambda line: {"label": line}).rows
    assert row.values == {"label": "ham"}


def test_rows_that_nothing_can_be_made_of_and_broken_ones_are_judged_together(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": "1"}\n{"n": "two"}\n{broken\n{"n": "4"}\n')
    found = rows.read_as(lambda row: int(row.values["n"]), [str(file)], max_bad_share=0.5)
    assert found.rows == [1, 4]
    assert [reject.position for reject in found.rejects] == [2, 3]
    with pytest.raises(DataError, match="2 of 4 rows are bad"):
        rows.read_as(lambda row: int(row.values["n"]), [str(file)], max_bad_share=0.3)


def test_rows_that_are_not_wanted_are_left_out_and_count(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1}\n{"n": 2}\n{broken\n{"n": 4}\n')
    found = rows.read_as(lambda row: row.values["n"] if row.values["n"] > 1 else None, [str(file)], max_bad_share=0.25)
    assert found.rows == [2, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "label,text\nspam,Hello, win\n", r'a\.csv:2: more fields than columns \(a text with commas needs "q'),
        ("a.tsv", "label\ttext\nspam\tHello\twin\n", r"a\.tsv:2: more fields than columns \(a tab in a text\)"),
        ("a.csv", 'a,b\n1,2\n3,"open\n4,5\n6,7\n', r"a\.csv:3: broken table \(unexpected end of data\)"),
        ("a.csv", 'a,b\n1,"open\n3,so "he" said\n', r"a\.csv:2: broken table .* mend the quotes from there on"),
        ("a.json", '{\n "data": [\n  {"text": "x"}\n ]\n}\n', r"a\.json: a single object; give a list, or one ob"),
        ("a.jsonl", '{"a": {"b": ["\\uD83D!"]}}\n', r"a\.jsonl:1: not UTF-8 \(half a surrogate pair, .ud83d; write"),
        ("a.json", '["\\ude00"]', r"a\.json:1: not UTF-8 \(half a surrogate pair, .ude00;"),
    ],
)
def test_nothing_is_cut_off_or_swallowed(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        rows.read([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", 'text,label\n"a ""b"", c\nd",ham,,\n', 'a "b", c\nd'),
        ("a.csv", 'text,label\n5" wide,ham\n', '5" wide'),
        ("a.tsv", 'text\tlabel\n"a" b "c\tham\n', '"a" b "c'),
        ("a.jsonl", '{"text": "\\ud83d\\ude00", "label": "ham"}', "\U0001f600"),
    ],
)
def test_what_is_well_written_stays_whole(tmp_path: Path, name: str, content: str, text: str) -> None:
    (tmp_path / name).write_text(content)
    (row,) = rows.read([str(tmp_path / name)]).rows
    assert row.values == {"text": text, "label": "ham"}


def test_a_column_that_is_null_in_a_row_is_none_of_its_fields(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a", "messages": None}]), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"prompt": "c", "messages": null}\n')
    found = rows.read([str(tmp_path)]).rows
    assert [row.values for row in found] == [{"prompt": "a"}, {"prompt": "c"}]
