"""`fledge eval run`, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.__main__ import run


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def results(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object of a run that succeeds."""
    assert run(["eval", "run", *arguments, "--device=cpu", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_a_folder_scores_the_unweighted_mean_over_its_sets(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"sentence_good": "Anna has a dog.", "sentence_bad": "Dog a has Anna, a dog, and a cat as well."}
    turned = {"sentence_good": pair["sentence_bad"], "sentence_bad": pair["sentence_good"]}
    write_rows(tmp_path / "d" / "a.jsonl", [pair, pair, pair])
    write_rows(tmp_path / "d" / "b.jsonl", [turned])
    found = results(capsys, str(model_folder), "--task", "blimp", "--data", str(tmp_path / "d"))
    assert found["results"]["blimp"]["accuracy"]["value"] == 0.5
    assert found["results"]["blimp"]["accuracy"]["n"] == 4
    sets = found["details"]["blimp"]["sets"]
    assert sorted(values["accuracy"]["value"] for values in sets.values()) == [0.0, 1.0]
    assert set(found["results"]["blimp"]["accuracy"]) == {
        "value",
        "low",
        "high",
        "n",
        "baseline",
        "detectable",
    }


def test_a_tie_counts_half_here_and_one_in_lm_eval(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"sentence_good": "Same.", "sentence_bad": "Same."}])
    found = results(capsys, str(model_folder), "--task", "blimp", "--data", str(file))["results"]["blimp"]
    assert (found["accuracy"]["value"], found["accuracy_lm_eval"]["value"]) == (0.5, 1.0)
