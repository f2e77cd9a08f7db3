"""`fledge village`."""

import json
from pathlib import Path

import pytest

from fledge.__main__ import run


def test_rows_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["village", "village:hamlet/messages"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert {"text", "label"} <= set(rows[0])


def test_rows_are_written_to_a_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stories.jsonl"
    assert run(["village", "village:hamlet#7", "--out", str(file)]) == 0
    assert len(file.read_text().splitlines()) == 7
    assert "7 rows of village:hamlet" in capsys.readouterr().out
    assert run(["village", "village:hamlet#7", "--out", str(file)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_an_unknown_world_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["village", "village:city"]) == 1
    assert "no world 'city'; there is hamlet" in capsys.readouterr().err


def test_the_folder_of_a_file_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["village", "village:hamlet#7", "--out", str(tmp_path / "new/a.jsonl")]) == 0
    assert (tmp_path / "new/a.jsonl").is_file()
    assert run(["village", "village:hamlet#7", "--out", str(tmp_path / "new/a.jsonl/b.jsonl")]) == 1
    assert "b.jsonl: not writable" in capsys.readouterr().err
