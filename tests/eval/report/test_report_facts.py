"""The report's facts, from run folders as the commands leave them, damaged ones too."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from eval import ancestry, report, run_facts
from fledge import lineage
from fledge.__main__ import run
from fledge.cli import cli
from fledge.errors import RunError


def test_parents_are_found_from_the_last_run_and_stand_before_it(
    make_report: Callable[..., Any], whole_life: Path
) -> None:
    life = make_report(whole_life / "ppo")
    assert [stage["name"] for stage in life["stages"]] == ["tokenizer", "shards", "base", "chat", "rm", "ppo"]
    assert life["title"] == "ppo"
    base = life["stages"][2]
    assert base["parents"][0]["sha256"] == lineage.sha256_folder(whole_life / "shards" / "shards")
    assert {parent["state"] for stage in life["stages"] for parent in stage["parents"]} == {"same"}
    assert life["problems"] == []


def test_data_is_named_where_it_came_in(make_report: Callable[..., Any], whole_life: Path) -> None:
    stages = {stage["name"]: stage["sources"] for stage in make_report(whole_life)["stages"]}
    assert stages["tokenizer"] == stages["shards"] == ["village:hamlet/stories"]
    assert stages["base"] == []  # through its shards
    assert stages["chat"] == ["village:hamlet/instructions"]


def test_the_age_slider_goes_from_the_untrained_model_to_the_last_stage(
    make_report: Callable[..., Any], whole_life: Path
) -> None:
    ages = make_report(whole_life / "ppo")["ages"]
    assert [(age["run"], age["step"]) for age in ages] == [
        *[("base", step) for step in (0, 50, 100)],
        *[("chat", step) for step in (20, 40)],
        *[("ppo", step) for step in (10, 20)],
    ]
    assert ages[0]["answers"][0]["tokens"][0] == [" a", 0.01]
    assert ages[3]["answers"][0]["prompt"] == "user: Who is Ada?"  # messages, as they are read


def test_a_moved_folder_of_runs_finds_its_parents_by_hash(
    make_report: Callable[..., Any], whole_life: Path, tmp_path: Path
) -> None:
    moved = whole_life.rename(tmp_path / "elsewhere")
    life = make_report(moved / "base")
    assert [stage["name"] for stage in life["stages"]] == ["tokenizer", "shards", "base"]
    assert life["problems"] == []


def test_parents_that_changed_or_went_are_told(
    make_report: Callable[..., Any], whole_life: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole_life / "shards" / "shards" / "config.json").write_text("other text")
    life = make_report(whole_life / "base")
    text = f"{whole_life}/base: its shards, {whole_life}/shards, is not what it was when this run used it"
    assert life["problems"] == [text]
    assert text in capsys.readouterr().err
    (whole_life / "base").rename(tmp_path / "base")
    (whole_life / "tokenizer").rename(tmp_path / "tok")
    states = {stage["name"]: [p["state"] for p in stage["parents"]] for stage in make_report(whole_life)["stages"]}
    assert states["chat"] == ["missing"]


def test_numbers_of_a_task_stand_on_one_card_with_their_floor(
    make_report: Callable[..., Any], whole_life: Path
) -> None:
    numbers = make_report(whole_life)["numbers"]
    (card,) = [card for card in numbers if card["task"] == "village_pairs"]
    assert [(row["label"], row["kind"], row["value"]) for row in card["rows"]] == [
        ("base", "model", 0.75),
        ("chat", "model", 0.72),
        ("baseline", "baseline", 0.5),
    ]
    assert (card["rows"][0]["low"], card["rows"][0]["high"], card["rows"][0]["n"]) == (0.7, 0.8, 400)


def test_models_own_texts_have_a_card_each(
    make_report: Callable[..., Any], write_evaluation: Callable[..., None], whole_life: Path
) -> None:
    for name, text in (("base", "one"), ("chat", "one"), ("ppo", "other")):
        write_evaluation(whole_life / name, 0.7, text=text, task="own_text", config={"kind": "own_text"})
    cards = [card for card in make_report(whole_life)["numbers"] if card["task"] == "own_text"]
    names = [[row["label"] for row in card["rows"] if row["kind"] == "model"] for card in cards]
    assert names == [["base", "chat"], ["ppo"]]


def test_a_baseline_that_differs_between_models_is_named_after_them(
    make_report: Callable[..., Any], write_evaluation: Callable[..., None], whole_life: Path
) -> None:
    write_evaluation(whole_life / "chat", 0.72, baseline=0.6)
    (card,) = [card for card in make_report(whole_life)["numbers"] if card["task"] == "village_pairs"]
    marks = {row["label"]: row["value"] for row in card["rows"] if row["kind"] == "baseline"}
    assert marks == {"baseline of base": 0.5, "baseline of chat": 0.6}


def test_what_was_measured_of_other_weights_is_left_out_and_told(
    make_report: Callable[..., Any], write_evaluation: Callable[..., None], whole_life: Path
) -> None:
    write_evaluation(whole_life / "chat", 0.72, sha256="of before it was trained on")
    life = make_report(whole_life)
    (card,) = [card for card in life["numbers"] if card["task"] == "village_pairs"]
    assert [row["label"] for row in card["rows"] if row["kind"] == "model"] == ["base"]
    assert life["problems"] == [
        f"{whole_life}/chat: village_pairs was measured of other weights; left out, measure again"
    ]


def test_a_resumed_run_took_as_long_as_its_loop_at_least(
    make_report: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    metrics = ({"step": 1, "elapsed_s": 50.0}, {"step": 2, "elapsed_s": 90.0})
    make_run(tmp_path / "r", "pretrain train", metrics=metrics, result={"elapsed_s": 42})
    (stage,) = make_report(tmp_path / "r")["stages"]
    assert stage["cost"]["elapsed_s"] == 90


def test_what_runs_measured_stands_beside_their_baselines() -> None:
    result = {
        "test": {"accuracy": 0.9, "log_loss": 0.3},
        "test_rows": 50,
        "intervals": {"accuracy": [0.8, 0.95], "log_loss": [0.2, 0.4]},
        "baselines": {"majority": {"accuracy": 0.5, "f1": 0.0}},
        "bayes_accuracy": 0.97,
        "reward_before": 0.1,
        "reward_after": 0.4,
    }
    cards = {card["metric"]: card["rows"] for card in run_facts.own_numbers(result)}
    assert cards == {
        "accuracy": [
            {"label": "", "kind": "model", "value": 0.9, "low": 0.8, "high": 0.95, "n": 50},
            {"label": "majority", "kind": "baseline", "value": 0.5},
            {"label": "best possible", "kind": "best", "value": 0.97},
        ],
        "reward": [{"label": "", "kind": "model", "value": 0.4}, {"label": "before", "kind": "baseline", "value": 0.1}],
    }


def test_a_stage_of_a_demo_shows_how_to_repeat_it_alone(make_report: Callable[..., Any], whole_life: Path) -> None:
    stages = {stage["name"]: stage for stage in make_report(whole_life)["stages"]}
    assert stages["base"]["typed"] == "fledge demo --out 'my runs'"
    config = f"{whole_life}/base/config.yaml"
    assert stages["base"]["alone"] == f"fledge pretrain train --config {config}"
    assert stages["chat"]["typed"] == "fledge finetune instruct runs/base"
    assert stages["chat"]["alone"] is None


def test_long_curves_keep_their_spikes() -> None:
    lines = [{"step": step, "loss": 1.0 + (step == 4321) * 9} for step in range(10_000)]
    points = run_facts.curves(lines)["loss"]
    assert len(points) <= run_facts.MAX_POINTS
    assert [4321, 10.0] in points
    assert points == sorted(points)


def test_many_ages_keep_the_first_and_the_last() -> None:
    found = run_facts.ages([{"step": step, "prompt": "a", "text": "b"} for step in range(0, 500, 5)])
    assert len(found) == run_facts.MAX_AGES
    assert (found[0]["step"], found[-1]["step"]) == (0, 495)


def test_damaged_lines_are_left_out_and_counted(
    make_report: Callable[..., Any], whole_life: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = whole_life / "base" / "metrics.jsonl"
    content = metrics.read_bytes()
    metrics.write_bytes(b'\xff\xfe{"step": 1}\n[1]\n{"loss": 2}\n' + content + b'{"step": 110, "lo')
    (whole_life / "base" / "result.json").write_text('{"steps": ')
    life = make_report(whole_life / "base")
    damaged = f"{whole_life}/base/result.json: can't be read; its numbers are left out"
    assert life["problems"] == [f"{metrics}: 4 damaged lines are left out", damaged]
    assert f"{metrics}: 4 damaged lines are left out" in capsys.readouterr().err
    assert len(life["stages"][2]["curves"]["loss"]) == len(content.splitlines())


@pytest.mark.parametrize("result", ['{"test": [1]}', '{"baselines": 5}', '{"confusion": [[1]]}', "[" * 100_000])
def test_a_result_of_another_shape_is_left_out(result: str, make_report: Callable[..., Any], whole_life: Path) -> None:
    (whole_life / "base" / "result.json").write_text(result)
    life = make_report(whole_life / "base")
    assert life["problems"] == [f"{whole_life}/base/result.json: can't be read; its numbers are left out"]


def test_what_is_no_number_or_nested_too_deep_is_left_out(make_report: Callable[..., Any], whole_life: Path) -> None:
    samples = whole_life / "base" / "samples.jsonl"
    samples.write_text("[" * 100_000 + "\n")
    (whole_life / "base" / "metrics.jsonl").write_text('{"step": 1, "loss": 1e999, "elapsed_s": "x"}\n')
    (whole_life / "base" / "result.json").write_text('{"elapsed_s": "y", "loss": 1e999}')
    life = make_report(whole_life / "base")
    assert life["problems"] == [f"{samples}: 1 damaged lines are left out"]
    assert life["stages"][2]["cost"]["elapsed_s"] is None
    assert life["stages"][2]["curves"] == {}


def test_numbers_that_are_none_leave_gaps() -> None:
    assert run_facts.curves([{"step": 1, "loss": None, "skipped_steps": True}]) == {}
    assert run_facts.ages([{"step": 1, "prompt": "a", "text": None, "tokens": [["a", None]]}]) == [
        {"step": 1, "answers": [{"prompt": "a", "text": "None"}]}
    ]


def test_a_loss_that_is_not_finite_leaves_the_page_valid(make_report: Callable[..., Any], whole_life: Path) -> None:
    with (whole_life / "base" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 999, "loss": math.nan, "bits_per_byte": math.inf}) + "\n")
    assert [999, None] not in make_report(whole_life / "base")["stages"][2]["curves"]["loss"]


def test_a_run_without_metrics_is_shown_all_the_same(make_report: Callable[..., Any], whole_life: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl", "result.json"):
        (whole_life / "base" / name).unlink()
    base = make_report(whole_life / "base")["stages"][2]
    assert (base["curves"], base["finished"], base["cost"]["elapsed_s"]) == ({}, False, None)


def test_text_of_a_model_cannot_leave_its_place_in_the_page(
    make_report: Callable[..., Any], evil: str, whole_life: Path, tmp_path: Path
) -> None:
    (whole_life / "base" / "samples.jsonl").write_text(
        json.dumps({"step": 0, "prompt": evil, "text": evil, "tokens": [[evil, 0.5]]}) + "\n"
    )
    life = make_report(whole_life / "base")
    assert life["ages"][0]["answers"] == [{"prompt": evil, "text": evil, "tokens": [[evil, 0.5]]}]
    assert "alert(1)" not in (tmp_path / "report.html").read_text().replace("\\u003cscript>alert(1)", "")


def test_a_page_holds_all_it_needs(make_report: Callable[..., Any], whole_life: Path, tmp_path: Path) -> None:
    make_report(whole_life)
    html = (tmp_path / "report.html").read_text()
    assert "{{" not in html
    own = html.split('id="life">')[0] + html.split("</script>", 1)[1]
    assert not [word for word in ("src=", "url(", "@import", "<link", "fetch(") if word in own]


def test_a_report_is_written_again_and_nothing_else_is(
    make_report: Callable[..., Any], whole_life: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_report(whole_life / "tokenizer")
    assert len(make_report(whole_life / "base")["stages"]) == 3
    mine = tmp_path / "mine.html"
    mine.write_text("my own page")
    command = ["report", str(whole_life / "base"), "--out"]
    assert run([*command, str(mine)]) == 1
    assert f"{mine}: exists and is no report of fledge's; choose another --out" in capsys.readouterr().err
    assert mine.read_text() == "my own page"
    assert run([*command, str(tmp_path)]) == 1
    assert f"{tmp_path}: is a folder; --out names the file to write" in capsys.readouterr().err


@pytest.mark.parametrize("made", [True, False])
def test_no_run_folder(made: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs"
    if made:
        path.mkdir()
    assert run(["eval", "report", str(path), "--out", str(tmp_path / "r.html")]) == 1
    expected = "no run folder, and no runs in it" if made else "no such folder; give the run folders"
    assert f"{path}: {expected}" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "[" * 100_000, '{"parents": "x"}', '{"parents": [{"kind": "model"}]}', '{"rewards": [{"model": 1}]}'],
)
def test_a_damaged_lineage_is_named(
    content: str, whole_life: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole_life / "shards" / "lineage.json").write_text(content)
    assert run(["report", str(whole_life / "base"), "--out", str(tmp_path / "r.html")]) == 1
    assert f"{whole_life}/shards/lineage.json: can't be read" in capsys.readouterr().err


def test_a_run_is_not_its_own_ancestor(make_run: Callable[..., Path], tmp_path: Path) -> None:
    older = make_run(tmp_path / "older", "pretrain train")
    make_run(tmp_path / "newer", "pretrain train", parents=(older / "model",))
    (older / "lineage.json").write_text((tmp_path / "newer/lineage.json").read_text())
    with pytest.raises(RunError, match=rf"{older}/lineage.json: names the run as its own ancestor"):
        ancestry.life([tmp_path / "newer"])


def test_a_folder_that_nothing_can_come_from_is_not_hashed(
    make_report: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "r", "pretrain train", parents=(tmp_path,))
    hashed: list[Path] = []
    monkeypatch.setattr(lineage, "sha256_folder", lambda folder, kind="": hashed.append(folder))
    (stage,) = make_report(run)["stages"]
    assert [parent["state"] for parent in stage["parents"]] == ["missing"]
    assert hashed == [run / "model"]


def test_a_part_stands_for_its_run_and_a_folder_for_its_runs(whole_life: Path) -> None:
    assert ancestry.expand([str(whole_life / "base" / "model")]) == [whole_life / "base"]
    names = {path.name for path in ancestry.expand([str(whole_life)])}
    assert names == {"tokenizer", "shards", "base", "chat", "spam", "rm", "ppo"}


def test_runs_of_one_name_are_told_apart(make_run: Callable[..., Path], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/runs/base", "b/runs/base", "b/other/base", "b/chat")]
    for path in paths:
        make_run(path, "pretrain train")
    stages = [stage["name"] for stage in report.gather(ancestry.life(paths))["stages"]]
    assert stages == ["a/runs/base", "b/runs/base", "other/base", "chat"]


def test_the_root_has_the_same_command() -> None:
    context = click.Context(cli)
    ours, theirs = (cli.get_command(context, name) for name in ("report", "eval"))
    assert isinstance(theirs, click.Group)
    shared = theirs.get_command(context, "report")
    assert ours is not None
    assert shared is not None
    assert (ours.help, [p.name for p in ours.params]) == (shared.help, [p.name for p in shared.params])
