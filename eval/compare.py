"""`fledge eval compare`: models on the same items, the later ones against the first."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from eval import harness, intervals, pairing, results
from eval.config import CompareConfig, TaskConfig
from eval.harness import DoesNotApply
from eval.intervals import Difference
from eval.pairing import Result
from eval.run import find_suite, with_data
from eval.subject import Subject
from fledge import atomic, commands, console
from fledge.errors import ConfigError, DataError

# Told for orientation; more of them is neither better nor worse.
NEUTRAL = {"answer_tokens", "ties"}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Wanted:
    """A task to compare on."""

    name: str
    task: TaskConfig
    limit: int | None


@dataclass
class Line:
    """One model's value of one metric, and what it is against the first model's."""

    task: str
    metric: str
    model: str
    value: float  # mean over seeds
    item_noise: float | None  # half of the 95 % interval that the items leave
    seed_noise: float | None  # standard deviation over the seeds, where there are several
    n: int
    difference: Difference | None = None  # None: the first model, other items, or a metric without items
    p_holm: float | None = None
    verdict: str = ""  # worse or better, where p_holm is below 0.05


def run(settings: CompareConfig) -> dict[str, Any]:
    """Compare models; see CompareConfig."""
    if len(settings.models) < 2 or len(set(settings.models)) < len(settings.models):
        raise ConfigError("give two different models or more; each is compared with the first one")
    title, out = f"# {' | '.join(settings.models)}\n", Path(settings.out or "")
    if settings.out and out.exists() and (out.is_dir() or not out.read_bytes().startswith(title.encode())):
        raise ConfigError(f"{out}: exists and is no comparison of these models; choose another --out, a file")
    subjects = {model: _seeds(model, settings) for model in settings.models}
    lines: list[Line] = []
    for wanted in _wanted(settings, subjects):
        lines += _lines(wanted.name, settings.models[0], _measure(wanted, subjects, settings))
    lines = _judged(lines)
    if not lines:
        raise DataError("no task could be measured on these models; name one with --task or --suite")
    text = _table(lines)
    console.result(text)
    if settings.out:
        atomic.write_file(out, f"{title}\n{text}\n")
    return {
        "model": settings.models[0],
        "out": settings.out,
        "lines": [_as_json(line) for line in lines],
        "worse": [_as_json(line) for line in lines if line.verdict == "worse"],
    }


def _as_json(line: Line) -> dict[str, Any]:
    return vars(line) | {"difference": line.difference and intervals.as_json(line.difference)}


def _seeds(model: str, settings: CompareConfig) -> list[Subject]:
    """The model, or each of the seeds in a run of several."""
    record = Path(model) / commands.SEEDS
    names = [model]
    if record.is_file():
        seeds = json.loads(record.read_text(encoding="utf-8"))["seeds"]
        names = [f"{model}/seed-{seed}" for seed in seeds]
    return [Subject.open(name, settings.device, settings.dtype, settings.batch_size) for name in names]


def _wanted(settings: CompareConfig, subjects: dict[str, list[Subject]]) -> list[Wanted]:
    """The tasks asked for; else those that were measured before on any of the models; else the quick suite."""
    if not settings.task and not settings.suite:
        known = _measured_before(settings, [one for group in subjects.values() for one in group])
        if known:
            console.note(f"comparing on what was measured before: {', '.join(w.name for w in known)}")
            return known
    suite = None if settings.task else find_suite(settings.suite or "quick")
    limit = settings.limit or (suite.limit if suite else None)
    first = subjects[settings.models[0]][0]
    found = []
    for name, task in harness.find_tasks(settings.task or (suite.tasks if suite else [])):
        try:
            found.append(Wanted(name, with_data(name, task, settings, first), limit))
        except DoesNotApply as error:
            if suite is None:
                raise
            console.note(f"{name}: left out: {error}")
    return found


def _measured_before(settings: CompareConfig, subjects: Sequence[Subject]) -> list[Wanted]:
    """Each task, with its data and limit (or --limit), of which some run has a result of its present weights."""
    found: dict[str, Wanted] = {}
    for subject in subjects:
        for result in results.read_all(subject.run) if subject.run else []:
            limit = settings.limit or result["settings"]["limit"]
            asked = result["settings"].get("dtype_asked", result["settings"]["dtype"])
            if asked != settings.dtype or result["model"]["sha256"] != subject.sha256:
                continue
            key = json.dumps(result["config"], sort_keys=True)  # of several limits the widest
            if key not in found or (limit or inf) > (found[key].limit or inf):
                found[key] = Wanted(result["task"], TaskConfig.model_validate(result["config"]), limit)
    return list(found.values())


def _measure(wanted: Wanted, subjects: dict[str, list[Subject]], settings: CompareConfig) -> dict[str, list[Result]]:
    """The results of a task for each model, one a seed; a model that it can't be measured on is left out aloud."""
    found: dict[str, list[Result]] = {}
    for model, seeds in subjects.items():
        try:
            found[model] = [
                results.measured(one, wanted.name, wanted.task, wanted.limit, fresh=settings.fresh) for one in seeds
            ]
        except DoesNotApply as error:
            console.note(f"{wanted.name}: {model} left out: {error}")
    return found


def _lines(task: str, first_model: str, found: dict[str, list[Result]]) -> list[Line]:
    """A line for each metric and model."""
    metrics = dict.fromkeys(metric for seeds in found.values() for metric in seeds[0]["metrics"])
    return [
        _line(task, metric, model, seeds, found.get(first_model) if model != first_model else None)
        for metric in metrics
        for model, seeds in found.items()
        if all(metric in result["metrics"] for result in seeds)
    ]


def _line(task: str, metric: str, model: str, seeds: Sequence[Result], first: Sequence[Result] | None) -> Line:
    numbers = [result["metrics"][metric] for result in seeds]
    values = [float(number["value"]) for number in numbers]
    about = results.text_of(seeds[0])
    halves = [(n["high"] - n["low"]) / 2 for n in numbers if n["low"] is not None]
    return Line(
        task,
        metric,
        model,
        statistics.fmean(values),
        statistics.fmean(halves) if halves else None,
        statistics.stdev(values) if len(values) > 1 else None,
        int(numbers[0]["n"]),
        # Places in a model's own text are of another text for another model.
        pairing.difference(first, seeds, metric) if first and results.text_of(first[0]) == about else None,
    )


def _judged(lines: list[Line]) -> list[Line]:
    """The lines with p-values corrected for their number, and what is worse or better for certain."""
    told = [(line, line.difference) for line in lines if line.difference and line.metric not in NEUTRAL]
    corrected = intervals.holm([difference.p for _, difference in told])
    for (line, difference), p in zip(told, corrected, strict=True):
        is_worse = (difference.value > 0) == (line.metric in harness.LOWER_IS_BETTER)
        line.p_holm, line.verdict = p, ("worse" if is_worse else "better") if p < SIGNIFICANT else ""
    return lines


def _table(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table, and below it what has become worse."""

    def cells(line: Line) -> list[str]:
        d = line.difference
        return [
            line.task,
            line.metric,
            line.model,
            f"{line.value:.4f}",
            "" if line.item_noise is None else f"{line.item_noise:.4f}",
            "" if line.seed_noise is None else f"{line.seed_noise:.4f}",
            str(line.n),
            f"{d.value:+.4f}" if d else "",
            f"{d.low:+.4f} to {d.high:+.4f}" if d else "",
            "" if line.p_holm is None else f"{line.p_holm:.4f}",
            line.verdict,
        ]

    header = ["task", "metric", "model", "value", "items +-", "seeds +-", "n", "difference", "95 %", "p", "verdict"]
    first, worse = lines[0].model, [line for line in lines if line.verdict == "worse"]
    told = [
        f"- {line.model}: {line.task} {line.metric} {line.value - line.difference.value:.4f} to {line.value:.4f} "
        f"({line.difference.value:+.4f})"
        for line in worse
        if line.difference
    ]
    below = [f"Worse than {first} for certain:", *told] if told else [f"Nothing is worse than {first} for certain."]
    note = (
        "items +-: half of the 95 % interval; seeds +-: standard deviation; "
        "p: paired on the same items, corrected for the number of comparisons (Holm)"
    )
    return "\n".join([console.table([cells(line) for line in lines], header), "", *below, "", note])
