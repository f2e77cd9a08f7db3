"""Labelled texts, and what is wrong with some."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.data import labelled
from fledge.errors import DataError


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


HAM, SPAM = {"text": "See you at six", "label": "ham"}, {"text": "WIN a prize", "label": "spam"}


def test_a_file_without_suffix_has_a_label_and_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "SMSSpamCollection").write_text('ham\tHe said "six"\tagain\nspam\tWIN\n', encoding="utf-8")
    found = labelled.read([str(tmp_path / "SMSSpamCollection")])
    assert [(e.label, e.text) for e in found.examples] == [("ham", 'He said "six"\tagain'), ("spam", "WIN")]
    assert found.labels == ["ham", "spam"]
    assert found.examples[1].where.endswith("SMSSpamCollection:2")


def test_rows_that_stand_twice_are_taken_once(tmp_path: Path) -> None:
    found = labelled.read([write(tmp_path / "a.jsonl", [HAM, SPAM, HAM]), write(tmp_path / "b.jsonl", [HAM])])
    assert (len(found.examples), found.num_duplicates) == (2, 2)


def test_pairs_and_numbered_labels_are_read(tmp_path: Path) -> None:
    rows = [{"text": "a", "text_pair": "b", "label": 1}, {"text": "a", "text_pair": "c", "label": 0}]
    found = labelled.read([write(tmp_path / "a.jsonl", rows)])
    assert [(e.text, e.text_pair, e.label) for e in found.examples] == [("a", "b", "1"), ("a", "c", "0")]
    assert found.labels == ["0", "1"]


def test_village_messages_are_labelled() -> None:
    assert labelled.read(["village:hamlet/messages#20"]).labels == ["ham", "spam"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([HAM, HAM], "all rows are labelled 'ham'; classification needs at least two classes"),
        ([HAM, SPAM, {"text": "no label"}], "a.jsonl:3: no label; 1 of 3 rows are bad"),
        ([HAM, SPAM, {"text": "x", "label": " "}], "a.jsonl:3: no label"),
        ([HAM, SPAM, {"text": " ", "label": "ham"}], "a.jsonl:3: empty text"),
        ([HAM, SPAM, {"body": "x", "label": "ham"}], "a.jsonl:3: no field 'text'; fields: body, label"),
        ([HAM, SPAM, {"text": 4, "label": "ham"}], "a.jsonl:3: 'text' is not text: 4"),
        ([HAM, SPAM | {"label": "Ham"}], "labels that differ in case only: 'ham' ("),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError) as error:
        labelled.read([write(tmp_path / "a.jsonl", rows)])
    assert message in str(error.value)


def test_a_few_unlabelled_rows_are_passed_over_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", [HAM, SPAM, {"text": "no label"}])
    assert len(labelled.read([file], max_bad_share=0.5).examples) == 2
    assert f"passed over {file}:3: no label" in capsys.readouterr().err


def test_a_text_file_without_tabs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("just text\n", encoding="utf-8")
    with pytest.raises(DataError, match="plain:1: no tab; expected label<TAB>text"):
        labelled.read([str(tmp_path / "plain")])


def test_a_table_that_does_not_name_its_columns_is_told(tmp_path: Path) -> None:
    (tmp_path / "sms.tsv").write_text("ham\tSee you\nspam\tWIN\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"sms\.tsv:2: no field 'text'; fields: ham, See you; its first line must name"):
        labelled.read([str(tmp_path / "sms.tsv")])
