"""Pictures of what people would rather see than read."""

import io
from pathlib import Path
from typing import Any

from fledge import atomic


def loss_curve(metrics: list[dict[str, Any]], path: Path, levels: dict[str, float] | None = None) -> None:
    """Training loss in bits per byte by step, validation on top, horizontal lines at known levels, as PNG.

    Args:
        metrics: lines of metrics.jsonl.
        levels: name -> bits/byte, such as a known floor.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, style in (
        ("bits_per_byte", {"linewidth": 1, "alpha": 0.6}),
        ("validation_bits_per_byte", {"marker": "o", "markersize": 3}),
    ):
        points = [(m["step"], m[key]) for m in metrics if key in m]
        if points:
            label = "validation" if key.startswith("validation") else "training"
            axes.plot(*zip(*points, strict=True), label=label, **style)
    for number, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(value, color="0.4", linestyle=("--", ":", "-.")[number % 3], linewidth=1, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    atomic.write_file(path, image.getvalue())
