"""Several classifiers in one run: cross-validation, and the learning curve over numbers of labels.

Each model is a run of its own inside the run's folder, so that a killed series goes on where it was.
"""

import shutil
import statistics
from pathlib import Path
from typing import Any

from eval import intervals
from finetune import verdict
from finetune.config import ClassifyConfig
from finetune.judged import Judged, read_rows
from finetune.split import split
from fledge import commands, config, console, lineage, plots, rundir
from fledge.data import labelled
from fledge.data.sources import expand
from fledge.errors import Interrupted, RunError
from fledge.rundir import RunFolder

METRICS = ("accuracy", "f1", "auroc")  # of the learning curve


def run(settings: ClassifyConfig, folder: RunFolder) -> dict[str, Any]:
    """Train and measure all models of `--folds` or `--label-budget`.

    Raises:
        RunError: resumed with other steps than the models that are trained already had.
    """
    asked = lineage.read(folder.path).get("asked", {}).get("run", {}).get("max_steps", settings.run.max_steps)
    if settings.run.max_steps != asked:
        folder.freeze(config.with_values(settings, {"run.max_steps": asked}))
        raise RunError(
            f"{folder.path}: --run.max-steps {settings.run.max_steps}: the run has {asked}, and models trained for "
            "different times can't be taken together; leave it out, or start a new run"
        )
    return _cross_validate(settings, folder) if settings.folds else _learning_curve(settings, folder)


def _cross_validate(settings: ClassifyConfig, folder: RunFolder) -> dict[str, Any]:
    """As many models as folds; every row is tested once, by the model that has not seen it."""
    from finetune.classify import ceiling

    changes = [{"split.num_folds": settings.folds, "split.fold": fold} for fold in range(settings.folds)]
    examples = labelled.read(settings.data, settings.max_bad_share).examples
    for change in changes:  # before the first of them is trained
        split(examples, config.with_values(settings, {"folds": 0} | change).split, settings.validation.share)
    children = [_child(settings, folder, f"fold-{fold:02d}", change) for fold, change in enumerate(changes)]
    judged = _judged(children)
    folder.write(verdict.PREDICTIONS, b"".join((c / verdict.PREDICTIONS).read_bytes() for c in children))
    results = [rundir.read_result(child) or {} for child in children]
    spread = {name: [result["test"][name] for result in results] for name in verdict.SHOWN}
    numbers = [result["train_rows"] for result in results]
    facts = [
        f"{settings.folds} folds; every row was tested on once, by a model that had not seen it",
        f"trained on {min(numbers)} to {max(numbers)} rows each, {results[0]['duplicates']} duplicates left out",
        "accuracy of the folds: " + " ".join(f"{value:.4f}" for value in spread["accuracy"]),
    ]
    return {"folds": spread} | verdict.give(folder, judged, facts, ceiling(expand(settings.data)))


def _learning_curve(settings: ClassifyConfig, folder: RunFolder) -> dict[str, Any]:
    """Models of few labels, several draws of each number, on one test part."""
    points = []
    for budget in settings.budgets():
        epochs = settings.batch.epochs or 1
        # A pass over few labels is few steps.
        changes: dict[str, Any] = {
            "split.labels": budget,
            "batch.epochs": max(epochs, settings.label_steps * settings.batch.examples / budget),
        }
        draws = []
        for draw in range(settings.label_draws):
            seeds = {"split.draw": draw, "run.seed": settings.run.seed + draw}
            draws.append(_judged([_child(settings, folder, f"labels-{budget}-draw-{draw}", changes | seeds)]))
        points.append(_point(budget, draws))
    for metric in METRICS:
        curves = {
            name: [(point["labels"], *point["classifiers"][name][metric]) for point in points]
            for name in points[0]["classifiers"]
        }
        plots.label_curve(curves, metric, folder.path / f"labels_{metric}.png")
    folder.write_summary(_curve_summary(folder.path, points))
    last = points[-1]
    return {
        "curve": points,
        "test": {metric: last["classifiers"]["model"][metric][0] for metric in METRICS},
        "baselines": {
            name: {metric: values[metric][0] for metric in METRICS}
            for name, values in last["classifiers"].items()
            if name != "model"
        },
    }


def _point(budget: int, draws: list[Judged]) -> dict[str, Any]:
    """Mean, lowest and highest of each metric over the draws, and the model's lead over each baseline."""
    names = [name for name in draws[0].baselines if all(name in draw.baselines for draw in draws)]
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name in ("model", *names):
        measured = [(d.model if name == "model" else d.baselines[name]).metrics() for d in draws]
        values = {metric: [m[metric] for m in measured] for metric in METRICS}
        found[name] = {k: (statistics.fmean(v), min(v), max(v)) for k, v in values.items()}
    leads = {}
    for name in names:
        ours = [right for d in draws for right in d.model.is_right.tolist()]
        theirs = [right for d in draws for right in d.baselines[name].is_right.tolist()]
        # The draws share their test rows: a row is one observation.
        rows = [row["where"] for d in draws for row in d.rows]
        leads[name] = intervals.as_json(intervals.paired_difference(theirs, ours, rows))
    return {"labels": budget, "classifiers": found, "leads": leads}


def _curve_summary(path: Path, points: list[dict[str, Any]]) -> str:
    parts = [f"# {path}", "Means over draws of the labels, all on one test part."]
    for metric in METRICS:
        rows = [
            [name, *(f"{point['classifiers'][name][metric][0]:.4f}" for point in points)]
            for name in points[0]["classifiers"]
        ]
        header = [f"{metric} of", *(f"{point['labels']} labels" for point in points)]
        parts.append(console.table(rows, header))
    parts.append("## The model's accuracy above each baseline's, with 95 % intervals")
    for point in points:
        parts.append(
            "\n".join(
                f"- {point['labels']} labels, {name}: {intervals.told(lead, '+.4f')}"
                for name, lead in point["leads"].items()
            )
        )
    parts.append(f"Curves: {', '.join(f'{path}/labels_{metric}.png' for metric in METRICS)}")
    return "\n\n".join(parts)


def _judged(children: list[Path]) -> Judged:
    result = rundir.read_result(children[0]) or {}
    rows = [row for child in children for row in read_rows(child / verdict.PREDICTIONS)]
    return Judged(rows, result["labels"], result["positive"])


def _child(settings: ClassifyConfig, folder: RunFolder, name: str, changes: dict[str, Any]) -> Path:
    """Train one model of the series, or go on with it; only what was measured is kept."""
    path = folder.path / name
    console.note(name)
    own = config.with_values(settings, {"folds": 0, "label_budget": None} | changes)
    try:
        if rundir.is_run(path):
            commands.resume(ClassifyConfig, path, None, {})
        else:
            commands.execute(own, path)
    except Interrupted:
        raise Interrupted(f"stopped in {name}; continue with --resume {folder.path}") from None
    for done in ("checkpoints", "model"):
        shutil.rmtree(path / done, ignore_errors=True)
    return path
