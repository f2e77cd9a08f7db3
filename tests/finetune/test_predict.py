"""`fledge finetune predict`."""

import json
from pathlib import Path

import pytest
import torch

from fledge.__main__ import run
from fledge.models import classifier


@pytest.fixture(scope="module")
def spam(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained classifier of two labels."""
    torch.manual_seed(0)
    made = classifier.from_base(qwen3, ["ham", "spam"])
    path = tmp_path_factory.mktemp("classifier")
    made.save(path)
    return path


def predict(model: Path, *options: str) -> int:
    return run(["finetune", "predict", str(model), *options])


def test_a_text_gets_a_line_with_label_and_probabilities(spam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(spam, "--text", "WIN a FREE prize, text now") == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"label", "probabilities"}
    assert set(answer["probabilities"]) == {"ham", "spam"}
    assert answer["probabilities"][answer["label"]] >= 0.5
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_reward_model_has_no_labels(qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier.from_base(qwen3, ["reward"]).save(tmp_path)
    assert predict(tmp_path, "--text", "WIN") == 1
    assert "a reward model, which has no labels to choose from; use fledge rlhf score" in capsys.readouterr().err
    assert run(["chat", str(tmp_path), "--prompt", "Who?"]) == 1
    assert "a reward model, which scores answers; use fledge rlhf score" in capsys.readouterr().err


def test_a_file_has_a_line_a_row_in_order_whatever_the_batches(spam: Path, tmp_path: Path) -> None:
    texts = ["long " * (n % 7) + str(n) for n in range(30)] + [""]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for tokens in (1, 4096):
        out = tmp_path / f"{tokens}.jsonl"
        assert predict(spam, f"--input={tmp_path}/in.jsonl", f"--out={out}", f"--batch-tokens={tokens}") == 0
    first, second = (
        [json.loads(line) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in (1, 4096)
    )
    assert [row["label"] for row in first] == [row["label"] for row in second]
    alone = [next(classifier.load(spam).probabilities([(text, None)])) for text in texts]
    assert [row["probabilities"]["spam"] for row in second] == pytest.approx([float(p[1]) for p in alone], abs=2e-6)


def test_a_plain_file_has_a_text_a_line(spam: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    assert predict(spam, f"--input={tmp_path}/texts.txt", f"--out={tmp_path}/new/out.jsonl") == 0
    assert len((tmp_path / "new" / "out.jsonl").read_text().splitlines()) == 2


def test_nothing_is_half_written(spam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    assert predict(spam, f"--input={tmp_path}/in.jsonl", f"--out={tmp_path}/out.jsonl") == 1
    assert f"{tmp_path}/in.jsonl:2: no field 'text'; fields: body" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_existing_file_is_not_overwritten(spam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    assert predict(spam, "--text=x", f"--out={tmp_path}/out.jsonl") == 1
    assert "exists already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_texts_longer_than_the_context_are_told(spam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(spam, "--text", "word " * 200) == 0
    assert "1 texts are longer than the context; their ends were not read" in capsys.readouterr().err


def test_a_causal_folder_is_refused(qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(qwen3, "--text=x") == 1
    assert "holds a Qwen3ForCausalLM, not a classifier" in capsys.readouterr().err


def test_texts_are_asked_for(spam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(spam) == 2
    assert "give texts: --input FILE or --text '...'" in capsys.readouterr().err
