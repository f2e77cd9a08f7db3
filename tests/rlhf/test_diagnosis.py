"""What is said when PPO goes wrong: each rule by a short run with that fault in it, and silence without one."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fledge.__main__ import run
from fledge.metrics_log import read_metrics
from fledge.models import architecture, folder, generation
from fledge.models.generation import Completion, Sampling
from fledge.tokens import TextTokenizer
from rlhf import diagnosis
from rlhf.cast import Cast
from rlhf.config import PpoConfig
from rlhf.policy import Answers, Policy

ONE_IN_EIGHT = tuple(range(5, 400, 8))  # of the tokens; an untrained model says one of them every eighth time
LIKES_E = "def score(rows, answers):\n    return [a.count('e') / (1 + len(a)) for a in answers]\n"
SETTINGS = PpoConfig.model_validate({"model": "m", "reward": "r", "prompts": ["p"]})

# --- runs ---


@pytest.fixture(scope="module")
def sure(qwen3: Path, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that, as a trained one, is sure of some tokens."""
    path = tmp_path_factory.mktemp("sure")
    shape = dataclasses.replace(folder.load_model(qwen3).config, tie_embeddings=False)
    model = architecture.build(shape, 0)
    with torch.no_grad():
        model.head_weight.mul_(30)
    folder.save_model(model, path)
    tokenizer.save(path)
    return path


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of an untrained model that end: many tokens count as the end."""
    change_cast(monkeypatch, lambda cast: dataclasses.replace(cast, stop_ids=ONE_IN_EIGHT))


def change_cast(monkeypatch: pytest.MonkeyPatch, change: Callable[[Cast], Cast]) -> None:
    opened = Cast.open
    monkeypatch.setattr(Cast, "open", lambda settings: change(opened(settings)))


def change_generate(monkeypatch: pytest.MonkeyPatch, change: Callable[..., list[Completion]]) -> None:
    """Answers are written by `change(generate, model, prompts, sampling)`."""
    real = generation.generate
    monkeypatch.setattr(generation, "generate", lambda *arguments: change(real, *arguments))


def ppo(model: Path, path: Path, *more: str, reward: str = LIKES_E, gold: str = "") -> int:
    """PPO against the source text of a reward."""
    options = ["--config=tiny", "--prompts=village:hamlet/instructions:test#200", f"--out={path / 'run'}"]
    for name, text in (("reward", reward), ("gold", gold)):
        if text:
            (path / f"{name}.py").write_text(text)
            options.append(f"--{name}={path / name}.py")
    options += ["--run.threads=1", "--run.device=cpu", "--run.dtype=float32", "--run.max-steps=12"]
    options += ["--sampling.max-new-tokens=12", "--rollout.episodes=32", "--rollout.at-once=32"]
    options += ["--batch.minibatch=8", "--batch.microbatch=8", "--optim.schedule=constant"]
    return run(["rlhf", "ppo", str(model), *options, *more])


def findings(path: Path) -> str:
    """What the run says of itself at its end; its summary says the same."""
    found = json.loads((path / "run" / "result.json").read_text())["diagnosis"]
    summary = (path / "run" / "summary.md").read_text()
    assert [line[11:] for line in summary.splitlines() if line.startswith("- warning: ")] == found
    return "\n".join(found)


def test_a_healthy_run_is_silent(qwen3: Path, tmp_path: Path, stopping: None) -> None:
    more = ["--optim.learning-rate=0.02", "--optim.critic-learning-rate=1e-3", "--validation.every=2"]
    assert ppo(qwen3, tmp_path, *more) == 0
    rewards = [line["reward"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3])
    assert findings(tmp_path) == ""


def test_log_probabilities_of_another_temperature(
    sure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(real: Any, model: Any, prompts: Any, sampling: Sampling) -> list[Completion]:
        written = real(model, prompts, sampling)
        hot = Policy(model, temperature=2.0).scored(Answers(prompts, [one.ids for one in written]))
        return [dataclasses.replace(one, logprobs=part.tolist()) for one, part in zip(written, hot, strict=True)]

    change_generate(monkeypatch, wrong)
    assert ppo(sure, tmp_path, "--run.max-steps=6") == 0
    assert "no KL is below 0" in findings(tmp_path)
    assert "or another temperature" in findings(tmp_path)
    assert "no KL is below 0" in capsys.readouterr().err  # and while it runs


def test_dropout(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout(cast: Cast) -> Cast:
        drop = torch.nn.Dropout(0.3)  # in training mode, as it was made
        cast.policy.model.token_embed.register_forward_hook(lambda module, inputs, output: drop(output))
        return cast

    change_cast(monkeypatch, with_dropout)
    assert ppo(qwen3, tmp_path, "--run.max-steps=3") == 0
    assert "dropout is on" in findings(tmp_path)


def test_a_sampler_that_sees_padding(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(real: Any, model: Any, prompts: Any, sampling: Sampling) -> list[Completion]:
        longest = max(map(len, prompts))
        return list(real(model, [[0] * (longest - len(p)) + p for p in prompts], sampling))

    change_generate(monkeypatch, wrong)
    assert ppo(qwen3, tmp_path, "--run.max-steps=3") == 0
    assert "the sampler and the model see other tokens" in findings(tmp_path)


def test_a_policy_that_comes_apart_stops_the_run_and_keeps_its_checkpoints(
    sure: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(sure, tmp_path, "--optim.learning-rate=1", "--kl.weight=0") == 3
    assert "the policy has come apart" in capsys.readouterr().err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/actor"))
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_entropy_that_collapses(qwen3: Path, tmp_path: Path, stopping: None) -> None:
    reward = "def score(rows, answers):\n    return [-sum(map(ord, a)) / 100 for a in answers]\n"
    more = ["--optim.learning-rate=0.05", "--kl.weight=0", "--run.max-steps=14"]
    assert ppo(qwen3, tmp_path, "--sampling.max-new-tokens=1", *more, reward=reward) == 0
    assert "the entropy fell from" in findings(tmp_path)


def test_a_reward_that_pays_for_length(qwen3: Path, tmp_path: Path, stopping: None) -> None:
    reward = "def score(rows, answers):\n    return [len(a) / 10 for a in answers]\n"
    more = ["--optim.learning-rate=0.02", "--scores.unfinished-penalty=0", "--kl.weight=0"]
    more += ["--sampling.max-new-tokens=20", "--run.max-steps=16"]
    assert ppo(qwen3, tmp_path, *more, reward=reward) == 0
    assert "the reward pays for length" in findings(tmp_path)


def test_a_stop_token_that_never_comes(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_cast(monkeypatch, lambda cast: dataclasses.replace(cast, stop_ids=(-1,)))
    assert ppo(qwen3, tmp_path, "--run.max-steps=5", "--sampling.max-new-tokens=4") == 0
    assert "no answer ends by itself within 4 tokens" in findings(tmp_path)


def test_a_proxy_that_parts_from_gold(qwen3: Path, tmp_path: Path, stopping: None) -> None:
    gold = LIKES_E.replace("[a", "[-a")
    more = ["--optim.learning-rate=0.03", "--kl.weight=0", "--run.max-steps=16", "--validation.every=2"]
    assert ppo(qwen3, tmp_path, *more, gold=gold) == 0
    assert "while the gold reward fell by" in findings(tmp_path)


def test_a_critic_that_learns_too_fast(qwen3: Path, tmp_path: Path, stopping: None) -> None:
    assert ppo(qwen3, tmp_path, "--optim.critic-learning-rate=1", "--clip.value=0") == 0
    assert "of the returns' variance, less than their mean would" in findings(tmp_path)


def test_scores_out_of_the_critic_s_reach(qwen3: Path, tmp_path: Path, stopping: None) -> None:
    assert ppo(qwen3, tmp_path, reward=LIKES_E.replace("[a", "[1e4 * a")) == 0
    assert "the critic explains nothing of the returns" in findings(tmp_path)


# --- made by hand ---


def history(steps: int = 20, /, **columns: Callable[[int], Any]) -> list[diagnosis.Line]:
    """Steps of a healthy run, with some columns as functions of the step."""
    usual = {"kl": 0.2, "answer_tokens": 20, "ratio_error": 0.0, "entropy": 1.0, "stopped_share": 0.9}
    usual |= {"updates": 4, "explained_variance": 0.2, "reward": 1.0}
    return [
        {"step": step} | usual | {name: column(step) for name, column in columns.items()}
        for step in range(1, steps + 1)
    ]


def names(lines: Sequence[diagnosis.Line], settings: PpoConfig = SETTINGS) -> list[str]:
    return [finding.name for finding in diagnosis.of_run(lines, settings)]


def checked(seed: int, gold: Callable[[float], float], steps: int = 100) -> list[diagnosis.Line]:
    """A run whose reward rises to 1 with the noise of 64 answers, checked every fifth step against a gold reward."""
    random = np.random.default_rng(seed)
    lines = history(steps, reward=lambda step: 1 - np.exp(-4 * step / steps) + random.normal() / 8)
    prompt_B = random.normal(size=64)  # half of the variance is the prompts', which are the same in every check
    for line in lines[4::5]:
        scores = gold(line["step"] / steps) + (prompt_B + random.normal(size=64)) / np.sqrt(2)
        line["validation_gold_reward"] = scores.mean()
        line["validation_gold_reward_error"] = scores.std(ddof=1) / 8
    return lines


def test_noise_of_held_out_rewards_is_no_finding() -> None:
    """The best of twenty noisy checks lies above the last one, and the reward rises: neither means anything alone."""
    alarms = sum(names(checked(seed, lambda t: 0.5)) != [] for seed in range(100))
    alarms += sum(names(checked(seed, lambda t: 1 - np.exp(-4 * t))) != [] for seed in range(100))
    assert alarms <= 2


def test_a_fall_by_a_standard_deviation_is_found() -> None:
    found = sum(names(checked(seed, lambda t: 4 * t * (0.5 - t))) == ["over-optimisation"] for seed in range(20))
    assert found == 20


def test_a_gold_reward_that_falls_with_the_reward_is_no_exploit() -> None:
    lines = checked(0, lambda t: -3 * t)
    assert names(lines) == ["over-optimisation"]
    assert names([line | {"reward": -line["reward"]} for line in lines]) == []


def test_without_gold_the_held_out_reward_is_compared() -> None:
    lines = [
        {name.replace("_gold", ""): value for name, value in line.items()} for line in checked(0, lambda t: -3 * t)
    ]
    (finding,) = diagnosis.of_run(lines, SETTINGS)
    assert "while the held-out reward fell" in finding.text


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"kl": lambda step: -0.05}, []),
        ({"kl": lambda step: -0.15}, ["negative KL"]),
        ({"kl": lambda step: -0.15, "answer_tokens": lambda step: 200}, []),  # noise grows with the answers
        ({"ratio_error": lambda step: 0.01}, []),
        ({"ratio_error": lambda step: 0.03}, ["ratio"]),
        ({"kl": lambda step: 110.0}, []),
        ({"kl": lambda step: 130.0 * (step == 7)}, ["KL explosion"]),
        ({"entropy": lambda step: 1 / step}, []),
        ({"entropy": lambda step: 1.0 if step < 9 else 0.05}, ["entropy collapse"]),
        # In the critic's warm-up the entropy is not measured.
        ({"entropy": lambda step: float(step > 8), "updates": lambda step: 4 * (step > 8)}, []),
        ({"answer_tokens": lambda step: 20 if step < 9 else 40}, ["length blow-up"]),
        ({"answer_tokens": lambda step: 5 if step < 9 else 12}, []),  # still far from 64
        ({"stopped_share": lambda step: 0.5 if step < 9 else 0.0}, ["never stops"]),
        ({"stopped_share": lambda step: 0.03}, []),
        ({"explained_variance": lambda step: -0.3 if step < 10 else 0.1}, []),  # a critic's beginning
        ({"explained_variance": lambda step: -0.3 if step % 4 else 0.0}, []),  # noise around its mean
        ({"explained_variance": lambda step: -0.03}, ["idle critic"]),
        ({"explained_variance": lambda step: 1e-6}, ["idle critic"]),
        ({"explained_variance": lambda step: 0.0}, []),  # all answers earn the same: nothing to explain
    ],
)
def test_thresholds(columns: dict[str, Callable[[int], Any]], expected: list[str]) -> None:
    settings = SETTINGS.model_copy(update={"run": SETTINGS.run.model_copy(update={"dtype": "float32"})})
    assert names(history(**columns), settings) == expected


def test_the_rounding_of_bfloat16_is_no_finding() -> None:
    settings = SETTINGS.model_copy(update={"run": SETTINGS.run.model_copy(update={"dtype": "bfloat16"})})
    assert names(history(ratio_error=lambda step: 0.35), settings) == []
    assert names(history(ratio_error=lambda step: 1.5), settings) == ["ratio"]


def test_answers_that_may_be_cut_are_no_finding() -> None:
    """A model without chat goes on with a text until it is cut; the user then charges nothing for that."""
    scores = SETTINGS.scores.model_copy(update={"unfinished_penalty": 0.0})
    free = SETTINGS.model_copy(update={"scores": scores})
    assert names(history(stopped_share=lambda step: 0.0)) == ["never stops"]
    assert names(history(stopped_share=lambda step: 0.0), free) == []
    assert names(history(stopped_share=lambda step: float(step < 9)), free) == ["never stops"]


def test_a_resumed_run_remembers_the_steps_before() -> None:
    lines = history(entropy=lambda step: 1.0 if step < 9 else 0.05)
    resumed = diagnosis.History(lines, 19)  # logged past the checkpoint, as by a run that was killed
    assert [finding.name for finding in resumed.add(lines[19], SETTINGS)] == ["entropy collapse"]
    assert resumed.add(lines[19], SETTINGS) == []  # told once
