"""Pictures of what people would rather see than read."""

import io
from pathlib import Path
from typing import Any

from fledge import atomic
from fledge.metrics_log import METRICS

TRAINING: dict[str, Any] = {"linewidth": 1, "alpha": 0.6}  # every step's value: a restless line
CHECKS: dict[str, Any] = {"marker": "o", "markersize": 3}


def loss_curve(
    metrics: list[dict[str, Any]],
    path: Path,
    levels: dict[str, float] | None = None,
    metric: str = "bits_per_byte",
    unit: str | None = None,
) -> None:
    """Training loss by step, validation on top, horizontal lines at known levels, as PNG.

    Args:
        metrics: lines of metrics.jsonl.
        levels: name -> value, such as a known floor.
        metric: the one to draw, beside its `validation_...`.
        unit: None takes that of METRICS.
    """
    figure, axes = _figure(7, 4)
    _by_step(axes, metrics, metric, "training", TRAINING)
    _by_step(axes, metrics, f"validation_{metric}", "validation", CHECKS)
    for number, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(value, color="0.4", linestyle=("--", ":", "-.")[number % 3], linewidth=1, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    _label(axes, "step", unit or METRICS[metric])
    _save(figure, path)


def reinforcement(metrics: list[dict[str, Any]], path: Path) -> None:
    """Rewards by step, and below them the KL from the reference."""
    from matplotlib.ticker import MaxNLocator

    figure, (rewards, kl) = _figure(7, 5, rows=2)
    _by_step(rewards, metrics, "reward", "while training", TRAINING)
    _by_step(rewards, metrics, "validation_reward", "held out", CHECKS)
    _by_step(rewards, metrics, "validation_gold_reward", "gold, held out", CHECKS)
    _by_step(kl, metrics, "kl", "while training", TRAINING)
    for axes in (rewards, kl):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(rewards, "", "reward")
    _label(kl, "step", f"KL, {METRICS['kl']}")
    _save(figure, path)


def confusion_matrix(counts: list[list[int]], labels: list[str], path: Path) -> None:
    """How often each true label (row) was given each label (column); dark where most of a row lies."""
    side = 2.2 + 0.6 * len(labels)
    figure, axes = _figure(side + 0.6, side)
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, (own, share) in enumerate(zip(counts, shares, strict=True)):
        for column, count in enumerate(own):
            colour = "white" if share[column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    names = list(map(_plain, labels))
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    _save(figure, path)


def reliability_curve(points: list[tuple[float, float, int]], path: Path) -> None:
    """Share of right answers by confidence, beside the diagonal; points are as large as they have rows.

    Args:
        points: confidence, share right, rows.
    """
    figure, axes = _figure(4.5, 4.5)
    confidences, shares, counts = zip(*points, strict=True)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="as right as it is sure")
    axes.plot(confidences, shares, linewidth=1)
    axes.scatter(confidences, shares, [20 + 200 * count / sum(counts) for count in counts])
    _label(axes, "probability of the chosen label", "share right")
    _save(figure, path)


def label_curve(curves: dict[str, list[tuple[int, float, float, float]]], metric: str, path: Path) -> None:
    """A metric by the number of labels trained on, with its spread over draws.

    Args:
        curves: name -> (labels, mean, lowest, highest).
    """
    figure, axes = _figure(7, 4)
    for name, points in curves.items():
        labels, means, lows, highs = zip(*points, strict=True)
        (line,) = axes.plot(labels, means, label=_plain(name), **CHECKS)
        axes.fill_between(labels, lows, highs, alpha=0.15, color=line.get_color())
    axes.set_xscale("log")
    axes.set_xticks(labels, [str(number) for number in labels], minor=False)
    axes.set_xticks([], minor=True)
    _label(axes, "labels", metric)
    _save(figure, path)


def reward_by_kl(curves: dict[str, list[dict[str, Any]]], points: list[dict[str, Any]], path: Path) -> None:
    """What policies earn by their KL to the reference, under the best possible; a panel for each kind of reward.

    Args:
        curves: label of the reward -> the best possible, by rising `kl`: `value`, `low`, `high`, `is_trusted`.
        points: `name`, and `kl` and each label with `value`, `low` and `high`.
    """
    figure, panels = _figure(7, 4.5 * len(curves), rows=len(curves))
    for axes, (label, curve) in zip([panels] if len(curves) == 1 else panels, curves.items(), strict=True):
        kls, values, lows, highs = ([one[key] for one in curve] for key in ("kl", "value", "low", "high"))
        end = sum(one["is_trusted"] for one in curve)
        axes.plot(kls[:end], values[:end], color="0.3", linewidth=1, label="best by the reward")
        axes.plot(kls[end - 1 :], values[end - 1 :], color="0.3", linewidth=1, linestyle=":")
        axes.fill_between(kls, lows, highs, color="0.3", alpha=0.12, linewidth=0)
        for point in points:
            x, y = point["kl"], point[label]
            (dot,) = axes.plot(x["value"], y["value"], "o", markersize=4, label=_plain(point["name"]))
            style = {"color": dot.get_color(), "linewidth": 1}
            axes.plot([x["low"], x["high"]], [y["value"]] * 2, **style)
            axes.plot([x["value"]] * 2, [y["low"], y["high"]], **style)
        # The best possible rises about like the root of the KL.
        axes.set_xscale("function", functions=(lambda kl: abs(kl) ** 0.5, lambda root: root**2))
        axes.set_xlim(left=0)
        _label(axes, "KL to the reference, nats an answer", label)
    _save(figure, path)


def _by_step(axes: Any, metrics: list[dict[str, Any]], key: str, label: str, style: dict[str, Any]) -> None:
    points = [(m["step"], m[key]) for m in metrics if key in m]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.2)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)


def _plain(name: str) -> str:
    """A name as it is to be read: two dollar signs would make a formula of what is between them."""
    return name.replace("$", r"\$")


def _figure(width: float, height: float, rows: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches and its axes (a list of them if several), without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows)


def _save(figure: Any, path: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    atomic.write_file(path, image.getvalue())
