"""What one run left to be shown: curves, samples, numbers, cost; damaged lines are left out and counted."""

import json
import math
from pathlib import Path
from typing import Any

from fledge.atomic import disk_errors

MAX_POINTS = 600  # of a curve: more than a screen has columns for it
MAX_AGES = 40  # of a run on the slider
MAX_PROMPTS = 12


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON lines file with non-finite numbers as None, and how many lines can't be read."""
    found, num_damaged = [], 0
    with disk_errors(path):
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
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
        return json.loads(content, parse_constant=lambda name: None)
    except ValueError:  # also bytes that are no text
        return None


def curves(metrics: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """name -> [[step, value], ...] of every number in metrics.jsonl; reward over KL as `reward_kl`, [[kl, reward]]."""
    found: dict[str, list[list[float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name != "step" and _is_number(value):
                found.setdefault(name, []).append([line["step"], value])
    pairs = [
        [line["kl"], line["reward"]]
        for line in metrics
        if _is_number(line.get("kl")) and _is_number(line.get("reward"))
    ]
    found |= {"reward_kl": pairs} if pairs else {}
    return {name: _thinned(points) for name, points in found.items()}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most MAX_POINTS, with the lowest and the highest of each stretch: a spike stays."""
    width = math.ceil(2 * len(points) / MAX_POINTS)
    if len(points) <= MAX_POINTS:
        return points
    kept = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        ends = {min(stretch, key=_height)[0]: min(stretch, key=_height)}
        ends[max(stretch, key=_height)[0]] = max(stretch, key=_height)
        kept += [ends[step] for step in sorted(ends)]
    return kept


def _height(point: list[float]) -> float:
    return point[1]


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
        by_step.setdefault(sample["step"], {})[answer["prompt"]] = (
            answer  # a resumed run's own is the last one
        )
    steps = sorted(by_step)
    if len(steps) > MAX_AGES:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_AGES - 1))] for i in range(MAX_AGES)]
    return [{"step": step, "answers": list(by_step[step].values())[:MAX_PROMPTS]} for step in steps]


def _is_token(token: Any) -> bool:
    return isinstance(token, list) and len(token) == 2 and isinstance(token[0], str) and _is_number(token[1])


def _as_text(value: Any) -> str:
    """A prompt as it is read: text, or messages one below the other, up to where the answer begins."""
    if isinstance(value, list) and all(isinstance(m, dict) and "content" in m for m in value):
        return "".join(f"{m.get('role', '?')}: {m['content']}\n" for m in value) + "assistant: "
    return str(value)


def own_numbers(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What a command measured itself and has something to compare with: a before, baselines, known limits.

    Returns:
        [{metric, rows: [{label, kind: model | baseline | best, value, low?, high?, n?}]}].
    """
    test = result.get("test") if isinstance(result.get("test"), dict) else {}
    measured = {**result, **(test or {})}
    others: dict[str, list[dict[str, Any]]] = {}
    for name, values in (result.get("baselines") or {}).items():
        for metric, value in values.items() if isinstance(values, dict) else []:
            others.setdefault(metric, []).append({"label": name, "kind": "baseline", **_estimate(value)})
    for metric in measured:
        stem, _, word = metric.rpartition("_")
        if word == "before" and (stem in measured or f"{stem}_after" in measured):
            others.setdefault(stem, []).append(
                {"label": "before", "kind": "baseline", **_estimate(measured[metric])}
            )
            measured = {**measured, stem: measured.get(stem, measured.get(f"{stem}_after"))}
    for metric, known in (("floor_grammar", "baseline"), ("floor_world", "best")):
        if f"{metric}_bits_per_byte" in result:
            label = {"baseline": "knows the grammar", "best": "knows the village"}[known]
            value = result[f"{metric}_bits_per_byte"]
            others.setdefault("validation_bits_per_byte", []).append(
                {"label": label, "kind": known, "value": value}
            )
    cards = []
    for metric, rows in others.items():
        rows = [{"label": "", "kind": "model", **_estimate(measured.get(metric))}, *rows]
        rows = [row for row in rows if _is_number(row.get("value"))]
        if rows and rows[0]["kind"] == "model":
            cards.append({"metric": metric, "rows": rows})
    return cards


def confusion(result: dict[str, Any]) -> dict[str, Any] | None:
    """{labels, counts: rows are the true labels} of a classifier's result, whether it stands in `test` or beside."""
    for place in (result.get("test"), result):
        found = place.get("confusion") if isinstance(place, dict) else None
        if isinstance(found, dict) and "counts" in found:
            return {"labels": list(map(str, found["labels"])), "counts": found["counts"]}
        if isinstance(found, list) and found:
            labels = result.get("labels") or range(len(found))
            return {"labels": list(map(str, labels)), "counts": found}
    return None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results as one level with dotted names, long lists left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            found[prefix + name] = value
    return found


def _estimate(value: Any) -> dict[str, Any]:
    """A number, or one with its interval."""
    if isinstance(value, dict):
        return {key: value[key] for key in ("value", "low", "high", "n") if _is_number(value.get(key))}
    return {"value": value}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
