"""What one run left to be shown: curves, samples, numbers, cost; damaged lines are left out and counted."""

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

from fledge.atomic import disk_errors

MAX_POINTS = 600  # of a curve: more than a screen has columns for it
MAX_AGES = 40  # of a run on the slider
MAX_PROMPTS = 12

# What is known of the data: name in result.json -> the metric that it is a limit of, what to call it, which limit.
KNOWN = {
    "floor_grammar_bits_per_byte": ("validation_bits_per_byte", "knows the grammar", "baseline"),
    "floor_world_bits_per_byte": ("validation_bits_per_byte", "knows the village", "best"),
    "bayes_accuracy": ("accuracy", "best possible", "best"),
    "ceiling": ("accuracy", "best possible", "best"),
}


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON lines file with non-finite numbers as None, and how many lines can't be read."""
    found, num_damaged = [], 0
    with disk_errors(path), path.open("rb") if path.is_file() else BytesIO() as lines:
        for line in filter(bytes.strip, lines):
            content = _parsed(line)
            if isinstance(content, dict) and isinstance(content.get("step"), int):
                found.append(content)
            else:
                num_damaged += 1
    return found, num_damaged


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON file's object with non-finite numbers as None; None where there is none to be read."""
    content = _parsed(path.read_bytes()) if path.is_file() else None
    return content if isinstance(content, dict) else None


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content, parse_constant=lambda name: None, parse_float=_finite)
    except (ValueError, RecursionError):  # also bytes that are no text
        return None


def _finite(text: str) -> float | None:
    return float(text) if math.isfinite(float(text)) else None


def curves(metrics: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """name -> [[step, value], ...] of every number in metrics.jsonl; reward over KL as `reward_kl`, [[kl, reward]]."""
    found: dict[str, list[list[float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name != "step" and is_number(value):
                found.setdefault(name, []).append([line["step"], value])
    pairs = [
        [line["kl"], line["reward"]] for line in metrics if is_number(line.get("kl")) and is_number(line.get("reward"))
    ]
    found |= {"reward_kl": pairs} if pairs else {}
    return {name: _thinned(points) for name, points in found.items()}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most MAX_POINTS, with the lowest and the highest of each stretch: a spike stays."""
    if len(points) <= MAX_POINTS:
        return points
    width, last = math.ceil(2 * len(points) / (MAX_POINTS - 1)), len(points) - 1
    stretches = [range(start, min(start + width, last + 1)) for start in range(0, last + 1, width)]
    kept = {pick(stretch, key=lambda i: points[i][1]) for stretch in stretches for pick in (min, max)}
    return [points[i] for i in sorted(kept | {last})]


def ages(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the model answered at each step, [{step, answers: [{prompt, text, tokens}]}], oldest last."""
    by_step: dict[int, dict[str, dict[str, Any]]] = {}
    for sample in samples:
        answer: dict[str, Any] = {
            "prompt": _as_text(sample.get("prompt", "")),
            "text": _as_text(sample.get("text", "")),
        }
        tokens = sample.get("tokens")
        if isinstance(tokens, list) and all(_is_token(token) for token in tokens):
            answer["tokens"] = tokens
        by_step.setdefault(sample["step"], {})[answer["prompt"]] = answer  # a resumed run's own is the last one
    steps = sorted(by_step)
    if len(steps) > MAX_AGES:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_AGES - 1))] for i in range(MAX_AGES)]
    return [{"step": step, "answers": list(by_step[step].values())[:MAX_PROMPTS]} for step in steps]


def _is_token(token: Any) -> bool:
    return isinstance(token, list) and len(token) == 2 and isinstance(token[0], str) and is_number(token[1])


def _as_text(value: Any) -> str:
    """A prompt as it is read: text, or messages one below the other."""
    if isinstance(value, list) and all(isinstance(m, dict) and "content" in m for m in value):
        return "\n".join(f"{m.get('role', '?')}: {m['content']}" for m in value)
    return str(value)


def own_numbers(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What a command measured itself and gave something to compare with: a before, baselines, known limits.

    Returns:
        [{metric, rows: [{label, kind: model | baseline | best, value, low?, high?, n?}]}]; the first row is its own.
    """
    measured = {**result, **(result.get("test") or {})}
    others: dict[str, list[dict[str, Any]]] = {}
    for name, values in (result.get("baselines") or {}).items():
        for metric, value in values.items() if isinstance(values, dict) else [("accuracy", values)]:
            others.setdefault(metric, []).append({"label": name, "kind": "baseline", "value": value})
    for name, value in result.items():
        stem = name.removesuffix("_before")
        if stem != name:
            measured.setdefault(stem, result.get(f"{stem}_after"))
            others.setdefault(stem, []).append({"label": "before", "kind": "baseline", "value": value})
        if name in KNOWN:
            metric, label, kind = KNOWN[name]
            others.setdefault(metric, []).append({"label": label, "kind": kind, "value": value})
    cards = []
    for metric, rows in others.items():
        own = {"label": "", "kind": "model", "value": measured.get(metric)}
        if metric in (result.get("intervals") or {}):
            own |= dict(zip(("low", "high"), result["intervals"][metric], strict=True))
            own |= {"n": result.get("test_rows")}
        if is_number(own["value"]):
            cards.append({"metric": metric, "rows": [own, *(r for r in rows if is_number(r["value"]))]})
    return cards


def levels(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Horizontal lines that belong into a chart: metric -> name -> value."""
    found = {
        "bits_per_byte": {KNOWN[name][1]: result.get(name) for name in KNOWN if name.endswith("_bits_per_byte")},
        "loss": {"before": result.get("validation_loss_before")},
    }
    return {
        metric: {name: value for name, value in lines.items() if is_number(value)} for metric, lines in found.items()
    }


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results as one level with dotted names, long lists left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            found[prefix + name] = value
    return found


def is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)
