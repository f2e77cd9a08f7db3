"""Run folders as the commands leave them, and the report of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import results
from fledge import lineage
from fledge.__main__ import run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_run(
    path: Path,
    command: str,
    part: str = "model",
    parents: tuple[Path, ...] = (),
    rewards: tuple[Path, ...] = (),
    argv: tuple[str, ...] = (),
    data: Any = (),
    metrics: tuple[dict[str, Any], ...] = (),
    samples: tuple[dict[str, Any], ...] = (),
    result: dict[str, Any] | None = None,
) -> Path:
    """A run folder with the files that a command leaves."""
    (path / part).mkdir(parents=True)
    (path / part / "config.json").write_text(f"{command} {path.name}")
    (path / "config.yaml").write_text("")
    record = {
        "command": command,
        "argv": argv or ("demo", "--out", "my runs"),
        "seed": 0,
        "git_commit": "1f2e3d4c",
        "versions": {"python": "3.11.7"},
        "data": data,
        "parents": [lineage.parent(parent, parent.name) for parent in parents],
        "rewards": [{"name": "village"}] + [{"name": str(r), "model": lineage.parent(r, "reward")} for r in rewards],
    }
    (path / "lineage.json").write_text(json.dumps(record))
    write_lines(path / "metrics.jsonl", list(metrics))
    write_lines(path / "samples.jsonl", list(samples))
    (path / "result.json").write_text(json.dumps({"command": command, "elapsed_s": 60, **(result or {})}))
    return path


@pytest.fixture(name="make_run")
def make_run_fixture() -> Callable[..., Path]:
    """`make_run`, to tests."""
    return make_run


@pytest.fixture(name="write_evaluation")
def write_evaluation_fixture() -> Callable[..., None]:
    """`write_evaluation`, to tests."""
    return write_evaluation


@pytest.fixture
def evil() -> str:
    """`EVIL`, to tests."""
    return EVIL


def write_evaluation(
    run: Path, value: float, baseline: float = 0.5, text: str | None = None, sha256: str = "", **more: Any
) -> None:
    """A result as `eval run` keeps it."""
    accuracy = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 400, "baseline": baseline}
    content = {
        "version": results.VERSION,
        "task": "village_pairs",
        "task_sha256": "ab12",
        "metrics": {"accuracy": accuracy},
        "settings": {"limit": None},
        "model": {"sha256": sha256 or lineage.sha256_folder(run / "model"), "text": text},
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
        parents=(runs / "chat" / "model",),
        rewards=(runs / "rm" / "model",),
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


@pytest.fixture(name="make_report")
def make_report_fixture(tmp_path: Path) -> Callable[..., Any]:
    """Writes the report of some runs to report.html in the test's folder, and gives the facts in it."""

    def make_report(*runs: Path) -> Any:
        out = tmp_path / "report.html"
        assert run(["report", *map(str, runs), "--out", str(out)]) == 0
        return facts_of(out)

    return make_report
