"""Two models judged by a reward model; classifiers on labelled texts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval import harness, results
from eval.config import TaskConfig
from eval.harness import DoesNotApply
from eval.reward import RewardModel
from eval.subject import Subject
from fledge.errors import ConfigError, DataError, ModelError
from fledge.tokens import TextTokenizer
from tokenizer import chat

PROMPTS = ["Mara", "The baker", "Who keeps a goat?", "A", "One day in the village by the river", "x y z"]


def make_head(body: Path, folder: Path, tokenizer: TextTokenizer, labels: list[str]) -> Path:
    """A folder with the body of a model and a random head."""
    from fledge.models import classifier

    torch.manual_seed(0)
    classifier.from_base(body, labels).save(folder)
    return folder


@pytest.fixture(scope="module")
def judge(model_folder: Path, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with random opinions."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    folder.mkdir()
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prompts with answers."""
    file = tmp_path_factory.mktemp("prompts") / "rows.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": "Yes."}) for prompt in PROMPTS]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def task(rows: str, **settings: str) -> TaskConfig:
    """A win rate."""
    return TaskConfig.model_validate({"kind": "win_rate", "data": [rows], "chat": True, "max_new_tokens": 8} | settings)


def test_a_cached_win_rate_knows_its_judge_by_content(subject: Subject, judge: Path, rows: str, tmp_path: Path) -> None:
    copy = shutil.copytree(judge, tmp_path / "judge")
    asked = task(rows, reward_model=str(copy))
    rewards = []
    for _ in range(2):
        found = results.measured(subject, "win", asked, 2, str(tmp_path / "out"))
        rewards.append(found["metrics"]["reward"]["value"])
        weights = load_file(copy / "model.safetensors")
        save_file({name: w * 2 for name, w in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    assert rewards[0] != rewards[1]


def test_a_reward_is_the_logit_at_the_conversations_end(judge: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [f"{prompt} yes" * n for n, prompt in enumerate(PROMPTS)]
    rewards = RewardModel.open(str(judge)).score(prompts, answers)
    model = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    own = TextTokenizer.from_folder(judge)
    for prompt, answer, reward in zip(prompts, answers, rewards, strict=True):
        ids = chat.render(own, [*prompt, {"role": "assistant", "content": answer}]).ids[-64:]
        with torch.no_grad():
            alone = float(model(torch.tensor([ids])).logits[0, 0])
        assert reward == pytest.approx(alone, abs=1e-5)


def test_a_over_b_and_b_over_a_add_up_to_one(subject: Subject, judge: Path, rows: str, any_model: Path) -> None:
    forth = harness.measure(subject, task(rows, reward_model=str(judge), against=str(any_model)))
    other = Subject.open(str(any_model), "cpu")
    back = harness.measure(other, task(rows, reward_model=str(judge), against=str(subject.path)))
    wins = [r["items"]["values"]["win_rate"] for r in (forth, back)]
    assert [a + b for a, b in zip(*wins, strict=True)] == [1.0] * len(PROMPTS)
    assert forth["metrics"]["reward"]["baseline"] == pytest.approx(back["metrics"]["reward"]["value"], abs=1e-5)


def test_a_model_ties_with_itself(subject: Subject, judge: Path, rows: str) -> None:
    result = harness.measure(subject, task(rows, reward_model=str(judge), against=str(subject.path)))
    assert {result["metrics"][name]["value"] for name in ("win_rate", "ties")} == {0.5, 1.0}


def test_without_another_model_the_datas_answers_are_the_other(
    subject: Subject, judge: Path, rows: str, tmp_path: Path
) -> None:
    result = harness.measure(subject, task(rows, reward_model=str(judge)), limit=2)
    assert result["settings"]["against"] == "the data's answers"
    assert result["metrics"]["win_rate"]["n"] == 2
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bare\.jsonl:1: no answer in the data to compare with"):
        harness.measure(subject, task(str(bare), reward_model=str(judge)))


def test_a_win_rate_needs_a_judge(
    subject: Subject, rows: str, model_folder: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a win rate needs a judge: write a task file"):
        harness.measure(subject, task(rows))
    with pytest.raises(ModelError, match="not a classifier"):
        harness.measure(subject, task(rows, reward_model=str(model_folder)))
    two = make_head(model_folder, tmp_path, tokenizer, ["a", "b"])
    with pytest.raises(ModelError, match="a classifier of 2 labels; a reward model has one"):
        harness.measure(subject, task(rows, reward_model=str(two)))


def test_a_classifier_is_measured_on_labelled_texts(
    model_folder: Path, tokenizer: TextTokenizer, tmp_path: Path, subject: Subject
) -> None:
    from fledge.models import classifier

    folder = tmp_path / "model"
    folder.mkdir()
    make_head(model_folder, folder, tokenizer, ["ham", "spam"])
    texts = [f"{prompt} {n}" for prompt in PROMPTS for n in range(4)]
    labels = ["ham", "spam", "ham"] * 8
    file = tmp_path / "texts.tsv"
    lines = [f"{label}\t{text}" for label, text in zip(labels, texts, strict=True)]
    file.write_text("\n".join(["label\ttext", *lines]) + "\n", encoding="utf-8")
    wanted = TaskConfig(kind="classification", data=[str(file)])
    result = harness.measure(Subject.open(str(folder), "cpu"), wanted)
    rows = [row.tolist() for row in classifier.load(folder).probabilities((text, None) for text in texts)]
    chosen = ["ham" if row[0] >= row[1] else "spam" for row in rows]
    assert result["items"]["values"]["accuracy"] == [float(a == b) for a, b in zip(chosen, labels, strict=True)]
    assert result["metrics"]["accuracy"]["baseline"] == pytest.approx(2 / 3)
    assert {"f1", "mcc", "log_loss"} <= set(result["metrics"])
    with pytest.raises(DoesNotApply, match="not a classifier"):
        harness.measure(subject, wanted)
    file.write_text("label\ttext\nham\ta\neggs\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match="label 'eggs', but the classifier knows ham, spam"):
        harness.measure(Subject.open(str(folder), "cpu"), wanted)
