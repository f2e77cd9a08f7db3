"""`fledge finetune classify` and `predict`, through the command line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.special import softmax

from finetune import classify as classify_module
from finetune.judged import Judged, read_rows
from fledge import checkpoints
from fledge.__main__ import run
from fledge.metrics_log import read_metrics
from fledge.models import classifier
from fledge.models.folder import read_tensors
from fledge.village import spec

DATA = "village:hamlet/messages#150"
QUICK = ["--config=tiny", "--run.max-steps=8", "--run.checkpoint-every=4", "--validation.every=4", "--run.threads=1"]


def classify(base: Path, out: Path, *more: str, data: str = DATA) -> int:
    return run(["finetune", "classify", str(base), "--data", data, "--out", str(out), *QUICK, *more])


def weights(path: Path) -> bytes:
    return (path / "model" / "model.safetensors").read_bytes()


def result_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "result.json").read_text()))


@pytest.fixture(scope="session")
def trained(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps."""
    out = tmp_path_factory.mktemp("runs") / "spam"
    assert classify(qwen3, out) == 0
    return out


def test_a_run_leaves_everything_it_promises(trained: Path) -> None:
    names = {p.name for p in trained.iterdir() if not p.name.startswith(".")}
    expected = "checkpoints config.yaml lineage.json metrics.jsonl model result.json summary.md"
    assert names == {*expected.split(), "predictions.jsonl", "confusion.png", "reliability.png"}
    result = result_of(trained)
    assert {"accuracy", "f1", "mcc", "auroc"} <= set(result["test"])
    assert set(result["baselines"]) == {"majority", "tfidf_words_logistic_regression", "tfidf_characters_svm"}
    assert result["test_rows"] == sum(map(sum, result["confusion"])) > 20
    low, high = result["intervals"]["accuracy"]
    assert low < result["test"]["accuracy"] < high
    assert result["test"]["accuracy"] < result["bayes_accuracy"] < 1
    assert "does not beat the best baseline" in (trained / "summary.md").read_text()


def test_labels_forge_no_lines_of_the_summary(qwen3: Path, tmp_path: Path) -> None:
    rows = [dict(row) for row in spec.rows(DATA)]
    for row in rows:
        row["label"] = f"{row['label']}\n# Forged\n| 1 | 2 |"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert classify(qwen3, tmp_path / "r", "--threshold=f1", data=str(tmp_path / "rows.jsonl")) == 0
    lines = (tmp_path / "r" / "summary.md").read_text().splitlines()
    assert [line for line in lines if line.startswith(("# Forged", "| 1"))] == []


def test_the_saved_model_gives_the_answers_that_were_measured(qwen3: Path, tmp_path: Path) -> None:
    assert classify(qwen3, tmp_path / "r", "--run.dtype=bfloat16") == 0  # in training only
    loaded = classifier.load(tmp_path / "r")
    rows = read_rows(tmp_path / "r" / "predictions.jsonl")
    found = np.stack(list(loaded.probabilities([(row["text"], None) for row in rows])))
    np.testing.assert_allclose(found, [row["probabilities"] for row in rows], atol=1e-6)


@pytest.mark.parametrize("options", [[], ["--lora.rank=4", "--lora.dropout=0.1", "--balance=repeat"]])
def test_continued_after_a_kill_the_model_is_the_same_to_the_bit(
    gpt2: Path, tmp_path: Path, options: list[str]
) -> None:
    out = tmp_path / "r"
    assert classify(gpt2, out, *options) == 0
    whole = weights(out)
    for step in checkpoints.listed(out / "checkpoints")[1:]:
        shutil.rmtree(step)
    (out / "result.json").unlink()
    shutil.rmtree(out / "model")
    assert run(["finetune", "classify", "--resume", str(out)]) == 0
    assert weights(out) == whole


@pytest.mark.parametrize("how", ["--lora.rank=4", "--trained=head"])
def test_adapters_and_the_head_alone_leave_a_whole_model(gpt2: Path, tmp_path: Path, how: str) -> None:
    assert classify(gpt2, tmp_path / "r", how, "--balance=weights", "--threshold=f1") == 0
    loaded = classifier.load(tmp_path / "r")
    assert loaded.threshold is not None
    rows = read_rows(tmp_path / "r" / "predictions.jsonl")
    found = np.stack(list(loaded.probabilities([(row["text"], None) for row in rows])))
    np.testing.assert_allclose(found, [row["probabilities"] for row in rows], atol=1e-5)
    name = "transformer.h.0.attn.c_attn.weight"
    body, parent = (read_tensors(path)[name].numpy() for path in (tmp_path / "r" / "model", gpt2))
    assert np.array_equal(body, parent) == (how == "--trained=head")
    if how != "--trained=head":
        assert result_of(tmp_path / "r")["merge_max_logit_difference"] < 1e-5


def test_folds_test_every_row_once_and_go_on_after_a_kill(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folds"
    assert classify(qwen3, out, "--folds=2") == 0
    whole = result_of(out)
    assert whole["test_rows"] == 150
    assert len({row["where"] for row in read_rows(out / "predictions.jsonl")}) == 150
    assert len(whole["folds"]["accuracy"]) == 2
    numbers = [result_of(out / f"fold-0{fold}")["train_rows"] for fold in (0, 1)]
    assert f"trained on {min(numbers)} to {max(numbers)} rows each" in (out / "summary.md").read_text()
    (out / "result.json").unlink()
    (out / "fold-01" / "result.json").unlink()
    assert run(["finetune", "classify", "--resume", str(out), "--run.max-steps=20"]) == 1
    assert "--run.max-steps 20: the run has 8, and models trained for different times" in capsys.readouterr().err
    assert run(["finetune", "classify", "--resume", str(out)]) == 0
    assert "fold-00: finished already" in capsys.readouterr().err
    again = result_of(out)
    assert again["test"] == whole["test"]
    assert again["baselines"] == whole["baselines"]


def test_the_learning_curve_has_a_point_a_budget(qwen3: Path, tmp_path: Path) -> None:
    out = tmp_path / "curve"
    assert classify(qwen3, out, "--label-budget=20,8", "--label-draws=2", "--label-steps=2") == 0
    points = result_of(out)["curve"]
    assert [point["labels"] for point in points] == [8, 20]
    assert all(
        low <= mean <= high for mean, low, high in (point["classifiers"]["model"]["accuracy"] for point in points)
    )
    assert (out / "labels_f1.png").is_file()
    assert yaml.safe_load((out / "labels-8-draw-1" / "config.yaml").read_text())["run"]["seed"] == 1


def test_checks_read_a_part_of_the_rows_and_the_temperature_is_of_all(qwen3: Path, tmp_path: Path) -> None:
    found = []
    for name, options in {"all": [], "part": ["--validation.examples=4"]}.items():  # the last step is checked alone
        assert classify(qwen3, tmp_path / name, "--validation.every=8", *options) == 0
        found.append((result_of(tmp_path / name), read_metrics(tmp_path / name)[-1]))
    (whole, every), (part, some) = found
    assert whole["validation_rows"] > 4
    assert some["validation_accuracy"] * 4 == round(some["validation_accuracy"] * 4)
    assert some["validation_loss"] != every["validation_loss"]
    assert part["temperature"] == whole["temperature"]


def test_a_seed_moves_no_row_to_another_part(trained: Path, qwen3: Path, tmp_path: Path) -> None:
    assert classify(qwen3, tmp_path / "r", "--run.seed=5") == 0
    first, second = ([row["where"] for row in read_rows(p / "predictions.jsonl")] for p in (trained, tmp_path / "r"))
    assert first == second
    assert weights(trained) != weights(tmp_path / "r")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--positive=eggs"], "--positive eggs: no such label; there are ham, spam"),
        (["--lora.rank=2", "--lora.targets=nothing"], "--lora.targets nothing: no layer of the model is named so"),
        (["--folds=1"], "--folds 1: one part can't be both trained and tested on"),
        (["--label-budget=2,x"], "--label-budget 2,x: expected numbers from 4 on"),
        (["--folds=2", "--label-budget=8"], "exclude each other"),
        (["--lora.rank=2", "--trained=head"], "exclude each other"),
    ],
)
def test_what_is_wrong_is_said(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert classify(qwen3, tmp_path / "r", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_texts_longer_than_the_context_are_counted(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*spec.rows(DATA), {"text": "much ado " * 60, "label": "ham"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert classify(qwen3, tmp_path / "r", "--run.max-steps=1", data=str(tmp_path / "d.jsonl")) == 0
    cut = result_of(tmp_path / "r")["cut"]
    assert f"{cut} texts are longer than the context; their ends are left out" in capsys.readouterr().err
    ids = classifier.from_base(qwen3, ["a", "b"]).tokenizer.encode_batch([row["text"] for row in rows])
    assert cut == sum(len(row) + 2 > 96 for row in ids) > 0


def test_the_numbers_of_a_verdict_by_hand() -> None:
    def row(truth: int, chosen: int, other: int, p: float) -> dict[str, Any]:
        shares = [1 - p, p] if chosen else [p, 1 - p]
        votes = [float(other == k) for k in (0, 1)]
        return {"truth": truth, "chosen": chosen, "probabilities": shares, "baselines": {"x": votes}, "where": ""}

    rows = [row(1, 1, 1, 0.9), row(0, 1, 0, 0.8), row(1, 0, 0, 0.7), row(0, 0, 0, 0.6)]
    judged = Judged(rows, ["ham", "spam"], 1)
    assert judged.confusion() == [[1, 1], [1, 1]]
    assert judged.per_label()["spam"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 2}
    # The model is right on 2 rows, the baseline on 3; they differ on one: p = 2 * (1/2)^1 = 1.
    assert judged.against("x").value == -0.25
    assert judged.against("x").p == 1
    assert [r["chosen"] for r in judged.mistakes()] == [1, 0]


def test_a_threshold_that_nothing_can_choose_is_told(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify(qwen3, tmp_path / "r", "--threshold=f1", "--validation.share=0.0001") == 0
    assert "--threshold f1: no rows to validate on, so none is chosen" in capsys.readouterr().err


def test_the_threshold_is_that_of_the_positive_label(qwen3: Path, tmp_path: Path) -> None:
    found = []
    for label in ("ham", "spam"):
        out = tmp_path / label
        assert classify(qwen3, out, f"--positive={label}", "--threshold=f1") == 0
        found.append(classifier.load(out).threshold or 0)
        from_probability = 1 - found[-1] if label == "ham" else found[-1]
        assert f"'{label}' from probability {from_probability:.3f} on" in (out / "summary.md").read_text()
    # A model of 8 steps knows little, and F1 is then best where most texts are called by the label it is of.
    assert found[0] > found[1] + 0.01


def test_the_threshold_is_of_the_probabilities_that_the_tempered_head_gives() -> None:
    x_N1 = torch.arange(1.0, 11.0)[:, None]
    model = torch.nn.Module()
    model.score = torch.nn.Linear(1, 2)
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor([[0.0], [1.0]]))
        model.score.bias.zero_()
    made: Any = SimpleNamespace(model=model, threshold=None, logits=lambda ids: model.score(x_N1).detach().numpy())
    rows: Any = [SimpleNamespace(label=int(x >= 7), ids=[]) for x in x_N1[:, 0]]
    settings: Any = SimpleNamespace(threshold="accuracy")
    told = classify_module._calibrate(settings, made, rows, 1)
    assert told["temperature"] > 2
    assert (softmax(made.logits([]), axis=1)[:, 1] >= told["threshold"]).tolist() == [bool(row.label) for row in rows]


def test_folds_that_can_not_be_split_are_told_before_any_is_trained(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify(qwen3, tmp_path / "r", "--folds=9", data="village:hamlet/messages#14") == 1
    told = capsys.readouterr().err
    assert "too few rows to split; give more data, or another number than --folds 9" in told
    assert "fold-00" not in told
