"""`fledge rlhf grpo`: what is trained on, the loss against the paper's formula, exact resume, results, errors."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from fledge import config, rundir, trainer_bridge, trl_trainers
from fledge.__main__ import run
from fledge.models import folder
from fledge.tokens import TextTokenizer
from rlhf import grpo, scoring
from rlhf.config import GrpoConfig
from rlhf.policy import Answers, Policy

QUICK = [
    "--config=tiny",
    "--run.threads=1",
    "--run.max-steps=6",
    "--run.checkpoint-every=2",
    "--validation.every=2",
    "--validation.prompts=4",
    "--validation.at-end=20",
    "--sampling.max-new-tokens=6",
    "--group.answers=4",
    "--batch.examples=32",
    "--validation.share=0.3",
    "--optim.learning-rate=0.02",
    "--scores.unfinished-penalty=0",
]
LETTERS = "def score(rows, answers):\n    return [sum(map(str.islower, text)) / (len(text) + 1) for text in answers]\n"


def train(base: Path, prompts: Path, reward: Path | str, out: Path, *more: str) -> int:
    options = [f"--prompts={prompts}", f"--reward={reward}", "--out", str(out), *QUICK, *more]
    return run(["rlhf", "grpo", str(base), *options])


def weights(path: Path) -> bytes:
    return (path / "model" / "model.safetensors").read_bytes()


def result_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "result.json").read_text()))


def metrics_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of different lengths."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [{"prompt": "Tell " + "me " * (n % 4) + f"of {n}"} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward for small letters, which a few steps can learn."""
    path = tmp_path_factory.mktemp("reward") / "letters.py"
    path.write_text(LETTERS)
    return path


@pytest.fixture(scope="session")
def trained(qwen3: Path, prompts: Path, letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a batch of answers for two steps."""
    out = tmp_path_factory.mktemp("runs") / "grpo"
    assert train(qwen3, prompts, letters, out, "--group.steps=2") == 0
    return out


# --- what is trained on ---


@pytest.mark.parametrize(
    ("kind", "loss_kind"), [("qwen3", "grpo"), ("gpt2", "grpo"), ("qwen3", "bnpo"), ("qwen3", "dr_grpo")]
)
def test_the_loss_is_that_of_the_paper_on_the_ids_that_were_sampled(
    kind: str, loss_kind: str, tokenizer: TextTokenizer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """-(A ratio - beta (ref/pi - log(ref/pi) - 1)), a mean over each answer's tokens, then over answers.

    Source: Shao et al. 2024 (arXiv 2402.03300), eq. 3 and 4; at the first step policy and sampler agree, ratio = 1.
    dr_grpo divides each answer's sum by what an answer may have (Liu et al. 2025, arXiv 2503.20783), bnpo all by all.
    Prompts differ in length: GPT-2 would see other positions than it sampled with if they were padded to the left.
    """
    base = request.getfixturevalue(kind)
    beta = 0.5
    asked = [tokenizer.encode("Who keeps"), tokenizer.encode("Where is the goat of the baker now")]
    answers = [tokenizer.encode(text) for text in ("the mill", "a goat", "no", "it is at the inn")]
    rewards = [1.0, 0.0, 3.0, 2.0]
    settings = config.load(
        GrpoConfig,
        None,
        {
            ("model",): "x",
            ("reward",): "x",
            ("prompts",): ["x"],
            ("group", "answers"): "2",
            ("batch", "examples"): "4",
            ("loss", "kind"): loss_kind,
            ("loss", "beta"): str(beta),
            ("loss", "scale"): "group",
            ("sampling", "max_new_tokens"): "24",
            ("run", "threads"): "1",
        },
    )
    settings = trainer_bridge.resolved(settings, 4)
    policy, reference = (folder.load_by_transformers(base) for _ in range(2))
    for layer in policy.model.layers if kind == "qwen3" else ():
        layer.self_attn.attention_dropout = 0.5  # must not matter
    seen: list[Any] = []

    def judge(examples: list[Any], ids: list[list[int]]) -> list[float]:
        seen.extend(zip(examples, ids, strict=True))
        return rewards

    job = trainer_bridge.Job(
        model=policy,
        examples=asked,
        collate=lambda rows: [{"prompt": ids, "example": number} for number, ids in enumerate(rows)],
        loss=None,
        num_targets=lambda batch: 1,
        tokenizer=tokenizer,
        arguments=grpo._arguments(settings),
        write=lambda model, ids, step: answers,
        judge=judge,
    )
    with rundir.create(settings, tmp_path / "r") as run_folder:
        trainer = trainer_bridge._make(job, settings, run_folder, "trl-grpo")
    with torch.no_grad():  # away from the reference
        for weight in policy.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    trainer.current_gradient_accumulation_steps = 1
    policy.train()
    rows = [asked[0], asked[0], asked[1], asked[1]]
    inputs = trainer._prepare_inputs(job.collate(rows))
    loss = float(trainer.compute_loss(policy, inputs, num_items_in_batch=torch.tensor(1)).detach())

    assert seen == list(enumerate(answers))
    all_answers = Answers(rows, answers)
    own, theirs = Policy(policy).scored(all_answers), Policy(reference).scored(all_answers)
    expected = 0.0
    for place, (own_N, reference_N) in enumerate(zip(own, theirs, strict=True)):
        group = rewards[place // 2 * 2 : place // 2 * 2 + 2]
        mean = sum(group) / 2
        deviation = math.sqrt(sum((value - mean) ** 2 for value in group))  # n - 1 = 1
        advantage = (rewards[place] - mean) / (deviation + 1e-4)
        kls = [math.exp(r - o) - (r - o) - 1 for o, r in zip(own_N.tolist(), reference_N.tolist(), strict=True)]
        tokens = {"grpo": len(kls) * 4, "bnpo": sum(map(len, answers)), "dr_grpo": 24 * 4}[loss_kind]
        expected += sum(-advantage + beta * kl for kl in kls) / tokens
    assert loss == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 0.001


def test_trl_is_told_what_was_asked_for() -> None:
    asked = {
        "model": "x",
        "reward": "x",
        "prompts": ["x"],
        "group": {"answers": 2, "steps": 3, "passes": 2},
        "batch": {"examples": 8, "microbatch": 2},
        "loss": {"clip": 0.3, "scale": "batch", "beta": 0.5},
        "sampling": {"temperature": 0.7},
    }
    told = grpo._arguments(GrpoConfig.model_validate(asked))
    assert (told["epsilon"], told["scale_rewards"], told["beta"], told["temperature"]) == (0.3, "batch", 0.5, 0.7)
    assert (told["num_generations"], told["steps_per_generation"], told["num_iterations"]) == (2, 3 * 4, 2)


def test_what_trl_measures_is_told_in_our_terms() -> None:
    measured = {"kl": [0.1, 0.3], "completions/mean_length": [5.0, 7.0], "completions/clipped_ratio": [0.25, 0.25]}
    trainer: Any = SimpleNamespace(_metrics={"train": measured | {"reward": [1.0, 2.0], "entropy": []}})
    found = trl_trainers._Grpo.figures(trainer)
    assert found == pytest.approx({"reward": 1.5, "kl": 0.2 * 6, "answer_tokens": 6, "stopped_share": 0.75})
    assert not trainer._metrics["train"]  # the next line is of what comes after this one


def test_a_group_that_differs_is_something_to_learn_from(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"model": "x", "reward": "x", "prompts": ["x"], "group": {"answers": 2}, "batch": {"examples": 4}}
    watch = grpo.Watch(GrpoConfig.model_validate(asked))
    for _ in range(grpo.PATIENCE):
        watch.of_training([1.0, 1.0, 0.0, 1.0])
    assert "all answers to a prompt earned the same" not in capsys.readouterr().err


# --- runs ---


def test_the_reward_rises(qwen3: Path, letters: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "many.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Tell me of {n}"}) + "\n" for n in range(300)))
    more = ["--run.max-steps=10", "--batch.examples=64", "--optim.learning-rate=0.01", "--validation.at-end=90"]
    assert train(qwen3, prompts, letters, tmp_path / "r", "--group.steps=2", *more) == 0
    result = result_of(tmp_path / "r")
    assert result["reward_gain"]["low"] > 0
    assert result["kl"] > 0


def test_the_model_loads_and_tells_what_it_was_like(trained: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    stops = tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id)
    assert stops == ["<|im_end|>", "<|endoftext|>"]
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "text", "reward", "kl"} <= set(samples[0])
    assert "answers to held-out prompts" in (trained / "summary.md").read_text()


def test_metrics_have_what_a_report_draws(trained: Path) -> None:
    lines = metrics_of(trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all({"reward", "kl", "entropy", "answer_tokens", "stopped_share"} <= set(line) for line in lines[::2])
    assert all({"validation_reward", "validation_kl"} <= set(line) for line in lines[1::2])


@pytest.mark.parametrize(
    "more", [["--group.steps=2"], ["--group.passes=2", "--batch.microbatch=4", "--lora.rank=2"]], ids=["full", "lora"]
)
def test_continued_after_a_kill_the_model_is_the_same_to_the_bit(
    qwen3: Path, prompts: Path, letters: Path, tmp_path: Path, more: list[str]
) -> None:
    assert train(qwen3, prompts, letters, tmp_path / "whole", *more) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for gone in [tmp_path / "cut" / "checkpoints" / "step-000006", tmp_path / "cut" / "model"]:
        shutil.rmtree(gone)
    (tmp_path / "cut" / "result.json").unlink()
    assert run(["rlhf", "grpo", "--resume", str(tmp_path / "cut")]) == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    same = ("reward", "kl", "loss", "tokens", "validation_reward")
    told = [[[line.get(n) for n in same] for line in metrics_of(tmp_path / name)] for name in ("whole", "cut")]
    assert told[0] == told[1]


def test_checkpoints_fall_where_no_answers_are_left_over(
    qwen3: Path, prompts: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--group.steps=2", "--group.passes=2", "--run.keep-checkpoints=9", "--run.checkpoint-every=3"]
    assert train(qwen3, prompts, letters, tmp_path / "r", *options) == 0
    assert "8 steps instead of 6: 4 of them share a batch of answers" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir()) == ["step-000004", "step-000008"]


def test_a_reward_model_rewards(qwen3: Path, prompts: Path, judge: Path, tmp_path: Path) -> None:
    assert train(qwen3, prompts, judge, tmp_path / "r", "--run.max-steps=2") == 0
    lineage = json.loads((tmp_path / "r" / "lineage.json").read_text())
    assert lineage["rewards"][0]["model"]["sha256"]


def test_answers_that_do_not_end_pay_for_it(qwen3: Path, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(rows, answers):\n    return [1] * len(rows)\n")
    options = ["--scores.unfinished-penalty=3", "--sampling.max-new-tokens=40", "--run.max-steps=1"]
    assert train(qwen3, prompts, file, tmp_path / "r", *options) == 0
    (line,) = metrics_of(tmp_path / "r")
    assert 0 < line["stopped_share"] < 1
    assert line["reward"] == pytest.approx(1 - 3 * (1 - line["stopped_share"]), abs=1e-6)
    assert result_of(tmp_path / "r")["reward_after"] == 1


# --- errors ---


def test_a_reward_that_fails_stops_the_run_and_loses_nothing(
    qwen3: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, count = tmp_path / "mine.py", tmp_path / "count"
    file.write_text(
        f"import pathlib\n{LETTERS}good = score\n"
        "def score(rows, answers):\n"
        f"    file = pathlib.Path({str(count)!r})\n"
        "    calls = int(file.read_text() or 0) if file.exists() else 0\n"
        "    file.write_text(str(calls + 1))\n"
        "    return [float('nan')] * len(rows) if calls == 4 else good(rows, answers)\n"
    )
    assert train(qwen3, prompts, file, tmp_path / "r") == 1
    assert "mine.py: nan, no finite number, for the answer" in capsys.readouterr().err
    assert (tmp_path / "r" / "checkpoints" / "step-000002").is_dir()
    assert run(["rlhf", "grpo", "--resume", str(tmp_path / "r")]) == 0


def test_what_keeps_it_from_learning_is_told_once(
    qwen3: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(rows, answers):\n    return [1] * len(rows)\n")
    assert train(qwen3, prompts, file, tmp_path / "r", "--sampling.max-new-tokens=1") == 0
    told = capsys.readouterr().err
    assert told.count("in 3 batches all answers to a prompt earned the same, so nothing is learned") == 1
    assert told.count("no answer to the held-out prompts ends by itself within 1 tokens") == 1
    assert "it is not shown that anything was learned" in (tmp_path / "r" / "summary.md").read_text()


def test_what_is_wrong_is_told(qwen3: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(qwen3, prompts, "vilage", tmp_path / "r") == 1
    assert "did you mean 'village'?" in capsys.readouterr().err
    assert train(qwen3, prompts, "length:5", tmp_path / "r", "--group.answers=3") == 1
    assert "group.answers 3 does not divide batch.examples x group.steps (32)" in capsys.readouterr().err
    assert train(qwen3, prompts, "length:5", tmp_path / "r", "--sampling.max-new-tokens=60") == 1
    assert "0 prompts fit into 4 tokens, 60 are longer" in capsys.readouterr().err
    assert train(qwen3, prompts, "length:5", tmp_path / "r", "--lora.rank=2", "--lora.dropout=0.1") == 1
    assert "lora.dropout: GRPO needs the probabilities it sampled with, so without dropout" in capsys.readouterr().err
    assert train(qwen3, prompts, "village", tmp_path / "r") == 1
    assert "--reward village: no row of the village's instructions: it has no" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_gsm8k_can_be_trained_on_as_it_is(qwen3: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(40)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(qwen3, tmp_path / "gsm8k.jsonl", "gsm8k", tmp_path / "r", "--run.max-steps=1") == 0


def test_the_result_is_of_other_prompts_than_the_checks_that_picked_it(
    qwen3: Path, prompts: Path, letters: Path, tmp_path: Path
) -> None:
    more = ["--validation.at-end=8", "--validation.samples=9", "--run.max-steps=1"]
    assert train(qwen3, prompts, letters, tmp_path / "r", *more) == 0
    checked = {json.loads(line)["prompt"] for line in (tmp_path / "r" / "samples.jsonl").read_text().splitlines()}
    ended = {sample["prompt"] for sample in json.loads((tmp_path / "r" / "before.json").read_text())["samples"]}
    assert (len(checked), len(ended)) == (4, 8)
    assert not checked & ended


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.2, -0.1, "the reward fell"), (-0.1, 0.1, "holds 0: it is not shown"), (None, None, "holds 0"), (0.1, 0.2, "")],
)
def test_a_loss_is_no_gain_that_was_not_shown(trained: Path, low: float | None, high: float | None, said: str) -> None:
    result = result_of(trained) | {"reward_gain": {"value": 0.0, "low": low, "high": high}}
    settings = config.load(GrpoConfig, trained / "config.yaml")
    last = grpo._lines(settings, scoring.open_reward("length:5"), result)[-1]
    assert said in last if said else "the weights are those of step" in last
