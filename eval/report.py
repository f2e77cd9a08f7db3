"""`fledge eval report` (`fledge report`): a model's whole life on one page that needs nothing but a browser.

Python gathers facts; the page's own script draws them. Text from models and data reaches the page as JSON and is
shown as text, never as HTML, and the page's policy runs no other script and loads nothing.
"""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from eval import ancestry, harness, results, run_facts
from eval.ancestry import Stage
from eval.config import ReportConfig
from fledge import atomic, console
from fledge.errors import RunError
from fledge.metrics_log import METRICS

PAGE = Path(__file__).resolve().parent / "page"
MARK = "<!-- a report by fledge -->"


def run(settings: ReportConfig) -> dict[str, Any]:
    """Write the report; see ReportConfig."""
    out = Path(settings.out)
    _check_target(out)
    stages = ancestry.life(ancestry.expand(settings.runs))
    life = gather(stages)
    atomic.write_file(out, page(life))
    for problem in life["problems"]:
        console.warn(problem)
    console.result(f"{out}: {len(stages)} stages, {len(life['ages'])} ages, {len(life['numbers'])} numbers")
    return {"out": str(out), "stages": [str(stage.path) for stage in stages]}


def _check_target(out: Path) -> None:
    """A report may be written again, anything else is left alone.

    Raises:
        RunError: something else is there.
    """
    if out.is_dir():
        raise RunError(f"{out}: is a folder; --out names the file to write, such as {out}/report.html")
    if out.exists() and MARK.encode() not in out.read_bytes()[:200]:
        raise RunError(f"{out}: exists and is no report of fledge's; choose another --out")


def gather(stages: Sequence[Stage]) -> dict[str, Any]:
    """All facts of the page, ready for JSON."""
    names = _names([stage.path for stage in stages])
    problems: list[str] = []
    shown, ages, numbers = [], [], []
    with console.progress("gathering", len(stages), "runs") as bar:
        for stage in stages:
            run_id = names[stage.path.resolve()]
            metrics, num_bad_metrics = run_facts.read_lines(stage.path / "metrics.jsonl")
            samples, num_bad_samples = run_facts.read_lines(stage.path / "samples.jsonl")
            for file, count in (("metrics.jsonl", num_bad_metrics), ("samples.jsonl", num_bad_samples)):
                if count:
                    problems.append(f"{stage.path}/{file}: {count} damaged lines are left out")
            problems += _broken_links(stage)
            result = run_facts.read_object(stage.path / "result.json")
            try:
                told, cards = _stage(stage, names, metrics, result), run_facts.own_numbers(result or {})
            except (TypeError, ValueError, LookupError, AttributeError):  # of another shape
                result = None
                told, cards = _stage(stage, names, metrics, None), []
            if result is None and (stage.path / "result.json").is_file():
                problems.append(f"{stage.path}/result.json: can't be read; its numbers are left out")
            shown.append(told)
            ages += [{"run": run_id, **age} for age in run_facts.ages(samples)]
            for card in cards:
                rows = [{**row, "label": row["label"] or run_id} for row in card["rows"]]
                numbers.append({**card, "rows": rows, "task": run_id, "note": "measured by the run itself"})
            bar.advance()
    used = {parent["name"] for stage in shown for parent in stage["parents"]}
    return {
        # What the life led to: nothing was made from these.
        "title": ", ".join([stage["name"] for stage in shown if stage["name"] not in used][-3:]),
        "version": metadata.version("fledge-lm"),
        "stages": shown,
        "ages": ages,
        "numbers": numbers + _evaluations(stages, names, problems),
        "lower_is_better": sorted(harness.LOWER_IS_BETTER | {"validation_bits_per_byte", "validation_loss"}),
        "units": METRICS,
        "problems": problems,
    }


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """A short name for each run: its folder's, with as many folders above as tell it from the others."""
    resolved = [path.resolve() for path in paths]

    def ends(path: Path, length: int) -> str:
        return "/".join(path.parts[-length:])

    def name(path: Path) -> str:
        lengths = range(1, len(path.parts) + 1)
        return next(ends(path, n) for n in lengths if sum(ends(p, n) == ends(path, n) for p in resolved) == 1)

    return {path: name(path) for path in resolved}


def _broken_links(stage: Stage) -> list[str]:
    said = {"changed": "is not what it was when this run used it", "missing": "is not on this disk any more"}
    return [
        f"{stage.path}: its {link.kind}, {link.path}, {said[link.state]}" for link in stage.links if link.state in said
    ]


def _stage(
    stage: Stage, names: dict[Path, str], metrics: list[dict[str, Any]], result: dict[str, Any] | None
) -> dict[str, Any]:
    record, own = stage.record, result or {}
    last = {key: value for line in metrics for key, value in line.items()}
    times: list[Any] = [s for s in (own.get("elapsed_s"), last.get("elapsed_s")) if run_facts.is_number(s)]
    command = str(record.get("command", ""))
    typed = [str(word) for word in record.get("argv", [])]
    return {
        "name": names[stage.path.resolve()],
        "path": str(stage.path),
        "command": command,
        "typed": shlex.join(["fledge", *typed]),
        # A life in one process has one command line; this one repeats the stage alone.
        "alone": None
        if command in " ".join(typed)
        else shlex.join(["fledge", *command.split(), "--config", f"{stage.path}/config.yaml"]),
        "parents": [
            {
                "name": names.get(link.path.resolve(), str(link.path)),
                "kind": link.kind,
                "sha256": link.sha256,
                "state": link.state,
            }
            for link in stage.links
        ],
        "sources": stage.sources,
        "product": stage.product,
        "finished": result is not None,
        "facts": {
            "seed": record.get("seed"),
            "commit": record.get("git_commit"),
            **{f"version of {name}": value for name, value in record.get("versions", {}).items()},
        },
        "result": run_facts.flat(own),
        "curves": run_facts.curves(metrics),
        "levels": run_facts.levels(own),
        "confusion": {name: own[name] for name in ("labels", "confusion")} if "confusion" in own else None,
        "cost": {
            "parameters": own.get("parameters"),
            "steps": own.get("steps", last.get("step")),
            "tokens": last.get("tokens", own.get("tokens")),
            # The result knows nothing of a sitting that was killed, the metrics know the loop in all.
            "elapsed_s": max(times, default=None),
            "cpu_s": own.get("cpu_s"),
        },
    }


def _evaluations(stages: Sequence[Stage], names: dict[Path, str], problems: list[str]) -> list[dict[str, Any]]:
    """One card for each metric of each task, with a row for each run; only what is comparable shares a card.

    What was measured of other weights than a run now has is left out, and told in `problems`.
    """
    cards: dict[tuple[str, str, str, str | None], dict[str, Any]] = {}
    for stage in stages:
        own = names[stage.path.resolve()]
        for result in results.read_all(stage.path):
            if result["model"]["sha256"] != stage.product:
                problems.append(
                    f"{stage.path}: {result['task']} was measured of other weights; left out, measure again"
                )
                continue
            limit = result["settings"].get("limit")
            note = f"first {limit} of each set" if limit else ""
            for metric, found in result["metrics"].items():
                key = (result["task"], metric, result["task_sha256"], results.text_of(result))
                card = cards.setdefault(
                    key, {"task": result["task"], "metric": metric, "note": note, "rows": [], "marks": {}}
                )
                estimate = {name: found.get(name) for name in ("value", "low", "high", "n")}
                card["rows"].append({"label": own, "kind": "model", **estimate})
                # The harness gives one baseline a metric, and for some the best that can be had; a baseline is another
                # one where models have seen other text.
                for name, kind, label in (("baseline", "baseline", "baseline"), ("ceiling", "best", "best possible")):
                    if found.get(name) is not None:
                        card["marks"].setdefault((kind, label), {}).setdefault(found[name], []).append(own)
    for card in cards.values():
        for (kind, label), values in card.pop("marks").items():
            for value, owners in values.items():
                told = label if len(values) == 1 else f"{label} of {', '.join(owners)}"
                card["rows"].append({"kind": kind, "label": told, "value": value})
    return list(cards.values())


def page(life: dict[str, Any]) -> str:
    """The whole page with its style, script and facts in it."""
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in ("plots.js", "page.js"))
    parts = {
        "mark": MARK,
        "style": (PAGE / "page.css").read_text(encoding="utf-8"),
        "script": script,
        # The policy admits this very script and no other.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # No `<` in it: nothing in a text can end the element that holds it.
        "life": json.dumps(life, allow_nan=False).replace("<", "\\u003c"),
    }
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
