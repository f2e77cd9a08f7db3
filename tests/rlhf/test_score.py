"""`fledge rlhf score`."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.reward import RewardModel
from fledge.__main__ import run

QUESTION = {"role": "user", "content": "Who?"}


def score(reward: Path | str, rows: list[dict[str, Any]], tmp_path: Path, *options: str) -> int:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(["rlhf", "score", str(reward), "--input", str(file), *options])


def lines(text: str) -> list[float]:
    return [json.loads(line)["score"] for line in text.splitlines()]


def test_every_form_of_a_row_gets_the_reward_models_score_in_order(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Who?", "answer": "Ada."},
        {"prompt": [QUESTION], "answer": "Ada."},
        {"prompt": "Who?", "completion": "Ada."},
        {"messages": [QUESTION, {"role": "assistant", "content": "Ada."}]},
        {"instruction": "Who?", "output": "Ada."},
        {"prompt": "Who?", "answer": "Bo and Ada and Bo."},
        {"prompt": "Who?", "answer": ""},
    ]
    assert score(judge, rows, tmp_path) == 0
    found = lines(capsys.readouterr().out)
    expected = RewardModel.open(str(judge)).score([[QUESTION]] * 3, ["Ada.", "Bo and Ada and Bo.", ""])
    assert found == pytest.approx([expected[0]] * 5 + expected[1:], abs=1e-6)
    assert len({round(value, 5) for value in found}) == 3


def test_a_file_has_a_line_a_row_whatever_their_lengths(judge: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Who? " * (n % 7 + 1), "reply": f"Ada {n}"} for n in range(30)]
    out = tmp_path / "out.jsonl"
    assert score(judge, rows, tmp_path, "--out", str(out), "--answer-field", "reply") == 0
    model = RewardModel.open(str(judge))
    alone = [model.score([[{"role": "user", "content": row["prompt"]}]], [row["reply"]])[0] for row in rows]
    assert lines(out.read_text()) == pytest.approx(alone, abs=1e-6)


def test_how_many_were_cut_is_in_the_json(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Who? " * count, "answer": "Ada"} for count in (1, 200, 300)]
    assert score(judge, rows, tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cut"] == 2


def test_a_shipped_reward_scores_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score("length:2", [{"prompt": "Who?", "answer": "Ada Bo"}], tmp_path) == 0
    assert lines(capsys.readouterr().out) == [1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "Ada"}, 'in.jsonl:2: expected "prompt", "messages", "question" or "instruction"'),
        ({"prompt": "Who?"}, "in.jsonl:2: no answer; name its column with --answer-field, now 'answer'"),
        ({"prompt": "Who?", "answer": 3}, "in.jsonl:2: no answer; name its column"),
    ],
)
def test_a_row_without_a_score_stops_and_leaves_no_file(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str
) -> None:
    rows = [{"prompt": "Who?", "answer": "Ada"}, row]
    assert score(judge, rows, tmp_path, "--out", str(tmp_path / "out.jsonl")) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_that_answers_is_no_reward(qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(qwen3, [{"prompt": "Who?", "answer": "Ada"}], tmp_path) == 1
    assert "holds a Qwen3ForCausalLM, no reward model; make one with `fledge rlhf reward" in capsys.readouterr().err
