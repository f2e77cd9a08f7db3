"""Raw text to samples through the real commands, and the demo in small."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import fledge
from fledge import config, life
from fledge.__main__ import run
from fledge.config import CommandConfig
from fledge.metrics_log import read_metrics


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_text_becomes_a_model_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "".join(f"The {n % 7} cats sat on mat {n % 11} and saw {n % 13} birds.\n" for n in range(4000))
    Path("cats.txt").write_text(text)
    assert run(["tokenizer", "train", "--input", "cats.txt", "--vocab-size", "280", "--out", "runs/tok"]) == 0
    prepare = ["pretrain", "prepare", "--config", "tiny", "--input", "cats.txt", "--tokenizer", "runs/tok"]
    assert run([*prepare, "--out", "runs/shards"]) == 0
    train = ["pretrain", "train", "--config", "tiny", "--data", "runs/shards", "--out", "runs/base"]
    assert (
        run(
            [
                *train,
                "--run.max-steps=60",
                "--run.checkpoint-every=20",
                "--run.threads=1",
                "--samples.every=0",
            ]
        )
        == 0
    )
    losses = [m["loss"] for m in read_metrics(Path("runs/base")) if "loss" in m]
    assert losses[-1] < losses[0] - 2
    capsys.readouterr()
    assert run(["pretrain", "sample", "runs/base", "--prompt", "The 3 cats", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.startswith("The 3 cats")
    assert run(["runs", "--json"]) == 0
    listed = {r["run"]: r for r in json.loads(capsys.readouterr().out)["runs"]}
    assert listed["runs/base"]["state"] == "finished"
    assert listed["runs/base"]["parents"] == ["runs/shards"]
    model = fledge.load("runs/base")
    assert model.generate("The 3 cats", max_new_tokens=4, temperature=0)
    assert model.logits([[1, 2, 3]]).shape == (1, 3, 280)


def small(stages: list[life.Stage]) -> list[life.Stage]:
    """The demo's stages with little text and few steps."""
    shape = {"model.layers": 2, "model.width": 48, "model.heads": 3}
    changes = {
        "tokenizer": {"vocab_size": 300},
        "shards": {"input": ["village:hamlet#200"]},
        "pretrain": {"run.max_steps": 8, "samples.every": 4, **shape, "run.threads": 1},
        "instruct": {"run.max_steps": 3, "answers.at_end": 4, "run.threads": 1},
        "reward": {
            "data": ["village:hamlet/preferences#150"],
            "run.max_steps": 2,
            "validation.every": 2,
            "run.threads": 1,
        },
        "ppo": {
            "prompts": ["village:hamlet/instructions#60"],
            "run.max_steps": 2,
            "rollout.episodes": 8,
            "batch.minibatch": 4,
            "validation.prompts": 4,
            "validation.at_end": 4,
            "sampling.max_new_tokens": 8,
            "run.threads": 1,
        },
        **{f"{name} eval": {"limit": 5} for name in ("pretrain", "instruct", "ppo")},
        "compare": {"limit": 5},
        "report": {},
    }

    def changed(stage: life.Stage) -> Callable[[Path], CommandConfig]:
        return lambda out: config.with_values(stage.settings(out), changes[stage.name])

    return [life.Stage(stage.name, changed(stage), stage.bands) for stage in stages]


def test_the_demo_lives_its_stages_and_tells_what_it_missed(tmp_path: Path) -> None:
    result = life.run(tmp_path / "demo", small(life.life()))
    made = sorted(p.name for p in (tmp_path / "demo").iterdir())
    assert made == ["instruct", "ppo", "pretrain", "report.html", "reward", "shards", "tokenizer"]
    passed = {
        band["name"].split()[0] + " " + band["name"].split()[1]: band["passed"] for band in result["bands"]
    }
    # Eight steps teach nothing: neither the text nor, happily, to answer.
    expected = {"pretrain bits": False, "pretrain facts": True, "instruct facts": False, "ppo bits": True}
    assert expected.items() <= passed.items()
    assert {name.split()[0] for name in passed} == {"pretrain", "instruct", "reward", "ppo"}
    screen = life.last_screen(result)
    assert "floor: knows every villager" in screen
    assert screen.count("> Once upon a time") == 1
    again = life.run(tmp_path / "demo", small(life.life()))  # all is there: nothing is done again
    assert again["bands"] == result["bands"]
    runs = ("tokenizer", "shards", "pretrain", "instruct", "reward", "ppo")
    assert [again["stages"][name] for name in runs] == [result["stages"][name] for name in runs]


def test_a_demo_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    assert run(["demo", "--out", str(tmp_path)]) == 1
    assert f"continue it with --resume {tmp_path}" in capsys.readouterr().err
    assert run(["demo", "--resume", str(tmp_path / "none")]) == 1
    assert "no such demo" in capsys.readouterr().err
