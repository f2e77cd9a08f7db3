"""What a classification run says of itself: numbers, pictures and summary, from its test rows alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.intervals import Told, as_json, told
from eval.metrics.calibration_error import reliability
from finetune.judged import Judged
from fledge import console, plots
from fledge.rundir import RunFolder

PREDICTIONS = "predictions.jsonl"
SHOWN = ("accuracy", "f1", "mcc", "auroc")


def give(folder: RunFolder, judged: Judged, facts: Sequence[str], ceiling: float | None) -> dict[str, Any]:
    """Draw the pictures, write summary.md, and return the part of the `--json` object about the test rows.

    Args:
        facts: lines about data and training for the summary.
        ceiling: the best possible accuracy, where it is known.
    """
    baselines = {name: answers.metrics() for name, answers in judged.baselines.items()}
    best = judged.best_baseline()
    difference = as_json(judged.against(best))
    _draw(folder.path, judged)
    folder.write_summary(_summary(folder.path, judged, best, difference, facts, ceiling))
    return {
        "test": {name: estimate.value for name, estimate in judged.measured.items()},
        "test_rows": len(judged.rows),
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in judged.measured.items()},
        "baselines": {name: {key: values[key] for key in SHOWN} for name, values in baselines.items()},
        "best_baseline": best,
        "difference": difference,
        "beats_baseline": beats(difference),
        "per_label": judged.per_label(),
        "labels": judged.labels,
        "positive": judged.positive,
        "confusion": judged.confusion(),
        **({} if ceiling is None else {"bayes_accuracy": ceiling}),
    }


def beats(difference: Told) -> bool:
    """Whether the model is above the best baseline by more than chance would have it."""
    return bool(difference["value"] > 0 and difference["p"] < 0.05)


def sentence(best: str, difference: Told) -> str:
    """How the model stands to the best baseline."""
    points = {name: value and 100 * value for name, value in difference.items()}
    test = f"{told(points, '+.2f')} points of accuracy, paired p = {difference['p']:.3g}"
    if beats(difference):
        return f"The model beats the best baseline, {best}: {test}."
    if difference["p"] < 0.05:
        return f"**The model loses to the best baseline, {best}: {test}. Use the baseline.**"
    return f"**The model does not beat the best baseline, {best}: {test}.**"


def table(judged: Judged) -> str:
    """The model with its intervals above the baselines."""
    rows = [["model", *(told(as_json(judged.measured[name])) for name in SHOWN)]]
    for name, answers in judged.baselines.items():
        found = answers.metrics()
        rows.append([name, *(f"{found[key]:.4f}" for key in SHOWN)])
    return console.table(rows, ["classifier", *SHOWN])


def lines(judged: Judged) -> list[str]:
    """The model's numbers in sentences, for the model card."""
    n, best = len(judged.rows), judged.best_baseline()
    found = [f"{name} {told(as_json(e))} on {n} test rows" for name, e in judged.measured.items()]
    return [*found, sentence(best, as_json(judged.against(best))).replace("**", "")]


def _draw(path: Path, judged: Judged) -> None:
    plots.confusion_matrix(judged.confusion(), judged.labels, path / "confusion.png")
    model = judged.model
    bins = reliability(model.scores.tolist(), model.truth.tolist())
    points = [(part.confidence, part.accuracy, part.count) for part in bins]
    plots.reliability_curve(points, path / "reliability.png")


def _summary(
    path: Path, judged: Judged, best: str, difference: Told, facts: Sequence[str], ceiling: float | None
) -> str:
    parts = [f"# {path}", "\n".join(f"- {' '.join(fact.split())}" for fact in facts), "## Test", table(judged)]
    parts.append(sentence(best, difference))
    if ceiling is not None:
        parts.append(f"The best possible accuracy on this data is {ceiling:.4f} (Bayes).")
    others = [f"{name} {told(as_json(e))}" for name, e in judged.measured.items() if name not in SHOWN]
    f1_of = "the mean over labels" if judged.positive is None else f"{judged.labels[judged.positive]!r}"
    parts.append(f"f1 is that of {f1_of}. Also: {', '.join(others)}. Intervals are at 95 %.")
    per_label = [
        [name, *(f"{of[key]:.4f}" for key in ("precision", "recall", "f1")), str(of["n"])]
        for name, of in judged.per_label().items()
    ]
    parts.append(console.table(per_label, ["label", "precision", "recall", "f1", "rows"]))
    if mistakes := judged.mistakes():
        parts.append("## The most confident mistakes")
        cells = [
            [
                f"{row['probabilities'][row['chosen']]:.3f}",
                judged.labels[row["chosen"]],
                judged.labels[row["truth"]],
                row["where"],
                one_line(row["text"]),
            ]
            for row in mistakes
        ]
        parts.append(console.table(cells, ["probability", "predicted", "true", "row", "text"]))
    parts.append(f"Pictures: {path}/confusion.png, {path}/reliability.png; all test rows: {path}/{PREDICTIONS}")
    return "\n\n".join(part for part in parts if part)


def one_line(text: str, length: int = 80) -> str:
    """A text without line ends, cut to so many characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 3] + "..."
