"""The report's page, looked at in a real browser."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import report

SCREENSHOTS = Path(__file__).resolve().parents[3] / "build" / "screenshots"  # not in git; to be looked at


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


def test_every_plot_is_drawn_and_no_text_becomes_markup(
    make_report: Callable[..., Any], whole_life: Path, tmp_path: Path
) -> None:
    make_report(whole_life)
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


def test_the_slider_shows_the_answers_of_an_age(
    make_report: Callable[..., Any], whole_life: Path, tmp_path: Path
) -> None:
    make_report(whole_life)
    dom = browse(tmp_path / "report.html", "#age=0", "--dump-dom")
    assert "base, step 0 of 100: before its first step" in dom
    assert 'title="1 %" style="--p: 0.01;"> a</span>' in dom
    dom = browse(tmp_path / "report.html", "", "--dump-dom")
    assert "ppo, step 20 of 20: reward 0.952" in dom
    assert "The baker, of course." in dom.split('id="lineage"')[0]


def test_pointing_and_playing_work(
    make_report: Callable[..., Any], whole_life: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    make_report(whole_life)
    dom = browse(tmp_path / "report.html", "", "--dump-dom")
    assert 'data-pointed="&quot; a&quot;  probability 0.51"' in dom
    assert "step 100: 0.857, 0.879" in dom
    assert 'data-played="ppo, step 20 of 20: reward 0.952"' in dom  # on from the age of the click


def test_no_edge_of_the_lineage_runs_behind_a_box(
    make_run: Callable[..., Path],
    make_report: Callable[..., Any],
    whole_life: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taught = {"parents": (whole_life / "chat" / "model",), "rewards": (whole_life / "rm" / "model",)}
    asked = make_run(tmp_path / "asked", "rlhf ppo", data=[{"source": "prompts.jsonl"}], **taught)
    shutil.copytree(report.PAGE, tmp_path / "page")
    with (tmp_path / "page" / "page.js").open("a") as script:
        script.write("""
            const graph = document.querySelector(".graph");
            const inside = (point, box) => point.x > box.x + 1 && point.x < box.x + box.width - 1
              && point.y > box.y + 1 && point.y < box.y + box.height - 1;
            const boxes = [...graph.querySelectorAll("rect")].map((rect) => rect.getBBox());
            const edges = [...graph.querySelectorAll("path.edge")];
            const hidden = edges.filter((edge) => [...Array(101).keys()].some((share) =>
              boxes.some((box) => inside(edge.getPointAtLength(edge.getTotalLength() * share / 100), box))));
            document.documentElement.dataset.hidden = `${hidden.length} of ${edges.length}`;
        """)
    monkeypatch.setattr(report, "PAGE", tmp_path / "page")
    make_report(asked)
    hidden = re.search(r'data-hidden="(\d+) of (\d+)"', browse(tmp_path / "report.html", "", "--dump-dom"))
    assert hidden
    assert hidden[1] == "0"
    assert int(hidden[2]) > 8  # the edges were found


def test_it_is_seen_by_day_by_night_and_on_a_phone(
    make_report: Callable[..., Any], whole_life: Path, tmp_path: Path
) -> None:
    imread = pytest.importorskip("matplotlib.image").imread
    make_report(whole_life)
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


def test_a_page_of_almost_nothing_draws_itself(
    make_run: Callable[..., Path], make_report: Callable[..., Any], tmp_path: Path
) -> None:
    make_run(tmp_path / "tok", "tokenizer train", "tokenizer")
    make_report(tmp_path / "tok")
    dom = browse(tmp_path / "report.html", "", "--dump-dom")
    assert 'data-drawn="true"' in dom
    assert 'id="growing"' not in dom
