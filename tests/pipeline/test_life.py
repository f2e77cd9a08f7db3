"""Raw text to samples through the real commands, and the demo in small."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fledge
from fledge import config, life, life_screen
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
    assert run([*train, "--run.max-steps=60", "--run.checkpoint-every=20", "--run.threads=1", "--samples.every=0"]) == 0
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
        "classify": {
            "data": ["village:hamlet/messages?comparisons=0#150"],
            "run.max_steps": 2,
            "validation.every": 2,
            "run.threads": 1,
        },
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

    return [
        life.Stage(stage.name, config.with_values(stage.settings, changes[stage.name]), stage.judge) for stage in stages
    ]


def test_the_demo_lives_its_stages_and_tells_what_it_missed(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = life.run(out, small(life.life(life.Wish(), out)))
    made = sorted(p.name for p in (tmp_path / "demo").iterdir())
    runs = ("tokenizer", "shards", "pretrain", "instruct", "classify", "reward", "ppo")
    assert made == sorted([*runs, "report.html"])
    passed = {band["name"].split()[0] + " " + band["name"].split()[1]: band["passed"] for band in result["bands"]}
    # Eight steps teach nothing: neither the text nor, happily, to answer.
    expected = {"pretrain bits": False, "pretrain facts": True, "instruct facts": False, "ppo bits": True}
    assert expected.items() <= passed.items()
    assert {name.split()[0] for name in passed} == {"pretrain", "instruct", "classify", "reward", "ppo"}
    screen = life_screen.last(result)
    assert "floor: knows every villager" in screen
    assert screen.count("> Once upon a time") == 1
    again = life.run(out, small(life.life(life.Wish(), out)))  # all is there: nothing is done again
    assert again["bands"] == result["bands"]
    assert [again["stages"][name] for name in runs] == [result["stages"][name] for name in runs]


def test_a_life_on_ones_own_text_uses_what_lies_beside_it(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    (own / "books").mkdir(parents=True)
    for n in range(40):
        (own / "books" / f"{n}.txt").write_text(f"The {n} grey herons of lake {n % 7} stood still. " * 20)
    rows = [f'{{"text": "note {n}", "label": "{"ab"[n % 2]}"}}' for n in range(60)]
    (own / "labelled.jsonl").write_text("\n".join(rows))
    out = tmp_path / "demo"
    whole = life.life(life.Wish(data=str(own)), out)
    stages = {stage.name: stage for stage in small(whole)}
    given = {stage.name: stage.settings for stage in whole}
    read = given["shards"].input  # type: ignore[attr-defined]
    assert sorted(read)[:1] == [str(own / "books" / "0.txt")]
    assert len(read) == 41  # and the hamlet's stories
    for name, values in (("shards", {"input": read}), ("classify", {"data": given["classify"].data})):  # type: ignore[attr-defined]
        stage = stages[name]
        stages[name] = life.Stage(name, config.with_values(stage.settings, values), stage.judge)
    result = life.run(out, list(stages.values()), "classify")
    assert list(result["stages"])[-1] == "classify"
    assert result["stages"]["classify"]["labels"] == ["a", "b"]
    # The village's limits say nothing about other text.
    assert [band["name"] for band in result["bands"]] == ["pretrain bits per byte, below a 5-gram model's"]
    assert f"fledge demo --resume {tmp_path / 'demo'}" in life_screen.last(result)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "folder without data"),
        ({"labelled.csv": "text,label\na,x\nb,y\n"}, "no text to pretrain on"),
        ({"a.txt": "Words.", "labelled.csv": "words,kind\na,x\n"}, "no field 'text'"),
        ({"a.txt": "Words.", "preferences.jsonl": '{"chosen": "x"}\n'}, "preferences.jsonl:1"),
        ({"a.txt": "Words.", "conversations.jsonl": '{"said": "x"}\n'}, "conversations.jsonl:1"),
    ],
)
def test_own_files_that_can_not_be_used_are_told_before_anything_is_made(
    files: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    for name, text in files.items():
        (tmp_path / "mine" / name).write_text(text)
    assert run(["demo", "--data", str(tmp_path / "mine"), "--out", str(tmp_path / "life")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "life").exists()


def test_only_files_of_just_that_name_stand_for_the_villages(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "b"}]}\n'
    for name in ("conversations.jsonl", "conversations-old.jsonl", "conversations.jsonl.bak"):
        (tmp_path / name).write_text("".join(row % n for n in range(9)))
    (tmp_path / "labelled_by_hand.txt").write_text("A book.")
    given = {stage.name: stage.settings for stage in life.life(life.Wish(data=str(tmp_path)), tmp_path / "demo")}
    assert given["instruct"].data == [str(tmp_path / "conversations.jsonl")]  # type: ignore[attr-defined]
    assert given["classify"].data == [life.MESSAGES]  # type: ignore[attr-defined]
    others = [str(tmp_path / name) for name in ("conversations-old.jsonl", "labelled_by_hand.txt")]
    assert given["shards"].input == [life.VILLAGE, *others]  # type: ignore[attr-defined]


def test_a_time_budget_is_shared_out() -> None:
    def of(budget: str, stage: str) -> CommandConfig:
        return next(s.settings for s in life.life(life.Wish(time_budget=budget), Path("demo")) if s.name == stage)

    usual = sum(life.USUAL_S.values())
    assert of("1h", "pretrain").time_budget == f"{3600 - life.USUAL_S['others']:.0f}s"  # type: ignore[attr-defined]
    half = f"{usual / 2:.0f}s"
    assert of(half, "pretrain").time_budget == f"{life.USUAL_S['pretrain'] / 2:.0f}s"  # type: ignore[attr-defined]
    assert of(half, "instruct").run.max_steps == 250  # type: ignore[attr-defined]
    assert of(half, "reward").data[0].endswith("#3200")  # type: ignore[attr-defined]
    assert of("1h", "instruct").run.max_steps == 500  # type: ignore[attr-defined]


def test_a_larger_life_has_a_larger_model() -> None:
    layers = [life.life(life.Wish(size=size), Path("demo"))[2].settings.model.layers for size in life.SIZES]  # type: ignore[attr-defined]
    assert layers == sorted(layers)
    assert len(set(layers)) == len(layers)


def test_a_demo_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    assert run(["demo", "--out", str(tmp_path)]) == 1
    assert f"continue it with --resume {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "none"], "no such demo"),
        (["--stage", "school"], "no such stage; there are tokenizer, shards"),
        (["--time-budget", "soon"], "--time-budget"),
        (["--time-budget", "1s"], "--time-budget: 1s is too short for a life; give 10s or more"),
        (["--data", "none"], "no such folder; name one that holds your text"),
    ],
)
def test_a_wish_that_can_not_be_is_said_before_anything_is_made(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["demo", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_continued_demo_keeps_its_wish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(tmp_path / "d"), "--stage", "tokenizer"]) == 0
    assert "It goes on with" in capsys.readouterr().out
    assert run(["demo", "--resume", str(tmp_path / "d"), "--size", "medium"]) == 1
    assert "goes on as it was begun" in capsys.readouterr().err
    assert run(["demo", "--resume", str(tmp_path / "d"), "--stage", "tokenizer"]) == 0


def test_a_demo_that_is_stopped_says_how_the_whole_of_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*anything: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fledge.commands.execute", stopped)
    assert run(["demo", "--out", str(tmp_path / "life")]) == 130
    assert capsys.readouterr().err.endswith(f"error: stopped; continue with fledge demo --resume {tmp_path}/life\n")
