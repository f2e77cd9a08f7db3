"""The report: facts from run folders as the commands leave them, damaged ones too, and the page that holds them."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from eval import ancestry, report, results, run_facts
from fledge import lineage
from fledge.__main__ import run
from fledge.cli import cli

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_run(
    path: Path,
    command: str,
    part: str = "model",
    parents: tuple[Path, ...] = (),
    argv: tuple[str, ...] = (),
    data: Any = (),
    metrics: tuple[dict[str, Any], ...] = (),
    samples: tuple[dict[str, Any], ...] = (),
    result: dict[str, Any] | None = None,
) -> Path:
    """A run folder with the files that a command leaves."""
    (path / part).mkdir(parents=True)
    (path / part / "part.txt").write_text(f"{command} {path.name}")
    (path / "config.yaml").write_text("")
    record = {
        "command": command,
        "argv": argv or ("demo", "--out", "my runs"),
        "seed": 0,
        "git_commit": "1f2e3d4c",
        "versions": {"python": "3.11.7"},
        "data": data,
        "parents": [lineage.parent(parent, parent.name) for parent in parents],
    }
    (path / "lineage.json").write_text(json.dumps(record))
    write_lines(path / "metrics.jsonl", list(metrics))
    write_lines(path / "samples.jsonl", list(samples))
    (path / "result.json").write_text(json.dumps({"command": command, "elapsed_s": 60, **(result or {})}))
    return path


def write_evaluation(run: Path, value: float, **more: Any) -> None:
    """A result as `eval run` keeps it."""
    accuracy = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 400, "baseline": 0.5}
    content = {
        "version": results.VERSION,
        "task": "village_pairs",
        "task_sha256": "ab12",
        "metrics": {"accuracy": accuracy},
        "settings": {"limit": None},
        **more,
    }
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / f"{content['task']}-ab12.json").write_text(json.dumps(content))


@pytest.fixture
def whole_life(tmp_path: Path) -> Path:
    """Seven runs, from the tokenizer to PPO."""
    runs = tmp_path / "runs"
    stories, sharded = ["village:hamlet/stories"], {"sources": ["village:hamlet/stories"], "tokens": 9000}
    make_run(runs / "tokenizer", "tokenizer train", "tokenizer", data=[{"source": stories[0]}])
    make_run(runs / "shards", "pretrain prepare", "shards", (runs / "tokenizer" / "tokenizer",), data=sharded)
    make_run(
        runs / "base",
        "pretrain train",
        parents=(runs / "shards" / "shards",),
        data=sharded,
        metrics=tuple(
            {"step": s, "loss": 400 / (s + 40), "bits_per_byte": 120 / (s + 40), "learning_rate": 0.01}
            | {"tokens": 64 * s, "tokens_per_s": 9000 + 7 * (s % 30), "elapsed_s": s / 2}
            | ({"validation_loss": 410 / (s + 40), "validation_bits_per_byte": 123 / (s + 40)} if s % 20 == 0 else {})
            for s in range(10, 101, 10)
        ),
        samples=tuple(
            {"step": s, "prompt": prompt, "text": " a b", "tokens": [[" a", 0.01 + s / 200], [" b", 0.3], ["", 0.9]]}
            for s in (0, 50, 100)
            for prompt in ("Once upon a time", EVIL)
        ),
        result={
            "steps": 100,
            "parameters": 459_000,
            "validation_bits_per_byte": 0.88,
            "floor_grammar_bits_per_byte": 0.8,
            "floor_world_bits_per_byte": 0.6,
        },
    )
    question = [{"role": "user", "content": "Who is Ada?"}]
    make_run(
        runs / "chat",
        "finetune instruct",
        parents=(runs / "base" / "model",),
        argv=("finetune", "instruct", "runs/base"),
        data=[{"source": "village:hamlet/instructions"}],
        metrics=tuple({"step": s, "loss": 2 - s / 40, "validation_loss": 2.1 - s / 40} for s in (10, 20, 30, 40)),
        samples=tuple({"step": s, "prompt": question, "text": "The baker."} for s in (20, 40)),
        result={"validation_loss_before": 3.1, "validation_loss": 1.1, "stopped_share": 0.97},
    )
    make_run(
        runs / "spam",
        "finetune classify",
        parents=(runs / "base" / "model",),
        data=[{"source": "sms.tsv"}],
        result={
            "test": {"accuracy": 0.95, "f1": 0.9},
            "confusion": [[480, 7], [20, 93]],
            "labels": ["ham", "spam"],
            "baselines": {"majority": {"accuracy": 0.81, "f1": 0.0}, "bag of words": {"accuracy": 0.93, "f1": 0.85}},
        },
    )
    make_run(
        runs / "rm",
        "rlhf reward",
        parents=(runs / "chat" / "model",),
        result={"accuracy": 0.7, "baselines": {"length": 0.6}},
    )
    make_run(
        runs / "ppo",
        "rlhf ppo",
        parents=(runs / "chat" / "model", runs / "rm" / "model"),
        metrics=tuple({"step": s, "reward": 1 - 1 / (s + 1), "kl": 0.3 * s / (s + 5)} for s in range(1, 21)),
        samples=tuple({"step": s, "prompt": question, "text": "The baker, of course."} for s in (10, 20)),
        result={"reward_before": 0.4, "reward_after": 0.95, "kl": 0.24},
    )
    write_evaluation(runs / "base", 0.75)
    write_evaluation(runs / "chat", 0.72)
    return runs


def facts_of(page: Path) -> Any:
    """The facts in a page, as its script reads them."""
    html = page.read_text(encoding="utf-8")
    return json.loads(html.split('id="life">')[1].split("</script>")[0])


def make_report(tmp_path: Path, *runs: Path) -> Any:
    out = tmp_path / "report.html"
    assert run(["report", *map(str, runs), "--out", str(out)]) == 0
    return facts_of(out)


def test_parents_are_found_from_the_last_run_and_stand_before_it(whole_life: Path, tmp_path: Path) -> None:
    life = make_report(tmp_path, whole_life / "ppo")
    assert [stage["name"] for stage in life["stages"]] == ["tokenizer", "shards", "base", "chat", "rm", "ppo"]
    assert life["title"] == "ppo"
    base = life["stages"][2]
    assert base["parents"][0]["sha256"] == lineage.sha256_folder(whole_life / "shards" / "shards")
    assert {parent["state"] for stage in life["stages"] for parent in stage["parents"]} == {"same"}
    assert life["problems"] == []


def test_data_is_named_where_it_came_in(whole_life: Path, tmp_path: Path) -> None:
    stages = {stage["name"]: stage["sources"] for stage in make_report(tmp_path, whole_life)["stages"]}
    assert stages["tokenizer"] == stages["shards"] == ["village:hamlet/stories"]
    assert stages["base"] == []  # through its shards
    assert stages["chat"] == ["village:hamlet/instructions"]


def test_the_age_slider_goes_from_the_untrained_model_to_the_last_stage(whole_life: Path, tmp_path: Path) -> None:
    ages = make_report(tmp_path, whole_life / "ppo")["ages"]
    assert [(age["run"], age["step"]) for age in ages] == [
        *[("base", step) for step in (0, 50, 100)],
        *[("chat", step) for step in (20, 40)],
        *[("ppo", step) for step in (10, 20)],
    ]
    assert ages[0]["answers"][0]["tokens"][0] == [" a", 0.01]
    assert ages[3]["answers"][0]["prompt"] == "user: Who is Ada?"  # messages, as they are read


def test_a_moved_folder_of_runs_finds_its_parents_by_hash(whole_life: Path, tmp_path: Path) -> None:
    moved = whole_life.rename(tmp_path / "elsewhere")
    life = make_report(tmp_path, moved / "base")
    assert [stage["name"] for stage in life["stages"]] == ["tokenizer", "shards", "base"]
    assert life["problems"] == []


def test_parents_that_changed_or_went_are_told(
    whole_life: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole_life / "shards" / "shards" / "part.txt").write_text("other text")
    life = make_report(tmp_path, whole_life / "base")
    text = f"{whole_life}/base: its shards, {whole_life}/shards, is not what it was when this run used it"
    assert life["problems"] == [text]
    assert text in capsys.readouterr().err
    (whole_life / "base").rename(tmp_path / "base")
    (whole_life / "tokenizer").rename(tmp_path / "tok")
    states = {
        stage["name"]: [p["state"] for p in stage["parents"]] for stage in make_report(tmp_path, whole_life)["stages"]
    }
    assert states["chat"] == ["missing"]


def test_numbers_of_a_task_stand_on_one_card_with_their_floor(whole_life: Path, tmp_path: Path) -> None:
    numbers = make_report(tmp_path, whole_life)["numbers"]
    (card,) = [card for card in numbers if card["task"] == "village_pairs"]
    assert [(row["label"], row["kind"], row["value"]) for row in card["rows"]] == [
        ("base", "model", 0.75),
        ("chat", "model", 0.72),
        ("baseline", "baseline", 0.5),
    ]
    assert (card["rows"][0]["low"], card["rows"][0]["high"], card["rows"][0]["n"]) == (0.7, 0.8, 400)


def test_models_own_texts_have_a_card_each(whole_life: Path, tmp_path: Path) -> None:
    for name, text in (("base", "one"), ("chat", "one"), ("ppo", "other")):
        own = {"task": "own_text", "config": {"kind": "own_text"}, "model": {"text": text}}
        write_evaluation(whole_life / name, 0.7, **own)
    cards = [card for card in make_report(tmp_path, whole_life)["numbers"] if card["task"] == "own_text"]
    names = [[row["label"] for row in card["rows"] if row["kind"] == "model"] for card in cards]
    assert names == [["base", "chat"], ["ppo"]]


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


def test_a_stage_of_a_demo_shows_how_to_repeat_it_alone(whole_life: Path, tmp_path: Path) -> None:
    stages = {stage["name"]: stage for stage in make_report(tmp_path, whole_life)["stages"]}
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
    whole_life: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = whole_life / "base" / "metrics.jsonl"
    content = metrics.read_bytes()
    metrics.write_bytes(b'\xff\xfe{"step": 1}\n[1]\n{"loss": 2}\n' + content + b'{"step": 110, "lo')
    (whole_life / "base" / "result.json").write_text('{"steps": ')
    life = make_report(tmp_path, whole_life / "base")
    damaged = f"{whole_life}/base/result.json: can't be read; its numbers are left out"
    assert life["problems"] == [f"{metrics}: 4 damaged lines are left out", damaged]
    assert f"{metrics}: 4 damaged lines are left out" in capsys.readouterr().err
    assert len(life["stages"][2]["curves"]["loss"]) == len(content.splitlines())


def test_numbers_that_are_none_leave_gaps() -> None:
    assert run_facts.curves([{"step": 1, "loss": None, "skipped_steps": True}]) == {}
    assert run_facts.ages([{"step": 1, "prompt": "a", "text": None, "tokens": [["a", None]]}]) == [
        {"step": 1, "answers": [{"prompt": "a", "text": "None"}]}
    ]


def test_a_loss_that_is_not_finite_leaves_the_page_valid(whole_life: Path, tmp_path: Path) -> None:
    with (whole_life / "base" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 999, "loss": math.nan, "bits_per_byte": math.inf}) + "\n")
    assert [999, None] not in make_report(tmp_path, whole_life / "base")["stages"][2]["curves"]["loss"]


def test_a_run_without_metrics_is_shown_all_the_same(whole_life: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl", "result.json"):
        (whole_life / "base" / name).unlink()
    base = make_report(tmp_path, whole_life / "base")["stages"][2]
    assert (base["curves"], base["finished"], base["cost"]["elapsed_s"]) == ({}, False, None)


def test_text_of_a_model_cannot_leave_its_place_in_the_page(whole_life: Path, tmp_path: Path) -> None:
    (whole_life / "base" / "samples.jsonl").write_text(
        json.dumps({"step": 0, "prompt": EVIL, "text": EVIL, "tokens": [[EVIL, 0.5]]}) + "\n"
    )
    life = make_report(tmp_path, whole_life / "base")
    assert life["ages"][0]["answers"] == [{"prompt": EVIL, "text": EVIL, "tokens": [[EVIL, 0.5]]}]
    assert "alert(1)" not in (tmp_path / "report.html").read_text().replace("\\u003cscript>alert(1)", "")


def test_a_page_holds_all_it_needs(whole_life: Path, tmp_path: Path) -> None:
    make_report(tmp_path, whole_life)
    html = (tmp_path / "report.html").read_text()
    assert "{{" not in html
    own = html.split('id="life">')[0] + html.split("</script>", 1)[1]
    assert not [word for word in ("src=", "url(", "@import", "<link", "fetch(") if word in own]


def test_a_report_is_written_again_and_nothing_else_is(
    whole_life: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_report(tmp_path, whole_life / "tokenizer")
    assert len(make_report(tmp_path, whole_life / "base")["stages"]) == 3
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


def test_a_damaged_lineage_is_named(whole_life: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (whole_life / "shards" / "lineage.json").write_text("{")
    assert run(["report", str(whole_life / "base"), "--out", str(tmp_path / "r.html")]) == 1
    assert f"{whole_life}/shards/lineage.json: can't be read" in capsys.readouterr().err


def test_a_part_stands_for_its_run_and_a_folder_for_its_runs(whole_life: Path) -> None:
    assert ancestry.expand([str(whole_life / "base" / "model")]) == [whole_life / "base"]
    names = {path.name for path in ancestry.expand([str(whole_life)])}
    assert names == {"tokenizer", "shards", "base", "chat", "spam", "rm", "ppo"}


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
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


# --- in a real browser ---

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"  # not in git; to be looked at


def browse(page: Path, place: str, *options: str) -> str:
    """What a headless browser prints for a page, after a check that its console has stayed empty."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("NO BROWSER: the report's page was not looked at; install Debian's package chromium")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    own = [f"--user-data-dir={page.parent}/browser", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [browser, *quiet, *own, *options, page.as_uri() + place],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


def test_every_plot_is_drawn_and_no_text_becomes_markup(whole_life: Path, tmp_path: Path) -> None:
    make_report(tmp_path, whole_life)
    dom = browse(tmp_path / "report.html", "#age=1", "--dump-dom")
    assert 'data-drawn="true"' in dom
    drawn = re.findall(r'data-plot="([^"]*)"', dom)
    curves = ["Loss", "Learning rate", "Throughput", "Loss", "Reward over KL", "KL", "Reward"]
    cards = [
        "base: validation bits per byte",
        "chat: validation loss",
        "spam: accuracy",
        "spam: f1",
        "rm: accuracy",
        "ppo: reward",
    ]
    assert sorted(drawn) == sorted(["lineage", *curves, *cards, "village_pairs: accuracy", "confusion matrix"])
    assert "NaN" not in dom.split('id="life"')[0]
    assert dom.count("<script") == 2  # the facts and the page's own
    assert "<img" not in dom
    assert "&lt;img src=x onerror=alert(2)&gt;" in dom


def test_the_slider_shows_the_answers_of_an_age(whole_life: Path, tmp_path: Path) -> None:
    make_report(tmp_path, whole_life)
    dom = browse(tmp_path / "report.html", "#age=0", "--dump-dom")
    assert "base, step 0 of 100: before its first step" in dom
    assert 'title="1 %" style="--p: 0.01;"> a</span>' in dom
    dom = browse(tmp_path / "report.html", "", "--dump-dom")
    assert "ppo, step 20 of 20: reward 0.952" in dom
    assert "The baker, of course." in dom.split('id="lineage"')[0]


def test_pointing_and_playing_work(whole_life: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(report.PAGE, tmp_path / "page")
    with (tmp_path / "page" / "page.js").open("a") as script:  # what a visitor does, as part of the page
        script.write("""
            for (const plot of document.querySelectorAll(".plot"))
              plot.dispatchEvent(new PointerEvent("pointermove", {clientX: plot.getBoundingClientRect().right}));
            $("marks").firstChild.click();
            document.querySelector(".token").dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
            document.documentElement.dataset.pointed = $("token").textContent;
            window.setInterval = (tick) => { for (let i = 0; i < 9; i++) tick(); };  // no waiting
            $("play").click();
            document.documentElement.dataset.played = $("age-text").textContent;
        """)
    monkeypatch.setattr(report, "PAGE", tmp_path / "page")
    make_report(tmp_path, whole_life)
    dom = browse(tmp_path / "report.html", "", "--dump-dom")
    assert 'data-pointed="&quot; a&quot;  probability 0.51"' in dom
    assert "step 100: 0.857, 0.879" in dom
    assert 'data-played="ppo, step 20 of 20: reward 0.952"' in dom  # on from the age of the click


def test_it_is_seen_by_day_by_night_and_on_a_phone(whole_life: Path, tmp_path: Path) -> None:
    imread = pytest.importorskip("matplotlib.image").imread
    make_report(tmp_path, whole_life)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    dark = "--blink-settings=preferredColorScheme=0"
    looks = {"day": ["1200,5000"], "night": ["1200,5000", dark], "phone": ["500,2500"]}
    shown = {}
    for name, (size, *options) in looks.items():
        file = SCREENSHOTS / f"report-{name}.png"
        browse(tmp_path / "report.html", "#age=1", f"--window-size={size}", f"--screenshot={file}", *options)
        shown[name] = imread(file)[..., :3]
    assert shown["day"].mean() > 0.8
    assert shown["night"].mean() < 0.3
    assert all(picture.std() > 0.05 for picture in shown.values())  # not one colour


def test_a_page_of_almost_nothing_draws_itself(tmp_path: Path) -> None:
    make_run(tmp_path / "tok", "tokenizer train", "tokenizer")
    make_report(tmp_path, tmp_path / "tok")
    dom = browse(tmp_path / "report.html", "", "--dump-dom")
    assert 'data-drawn="true"' in dom
    assert 'id="growing"' not in dom
