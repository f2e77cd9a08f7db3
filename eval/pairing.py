"""Two models, or two sets of seeds, on the same items: the difference of a metric, with its interval and p-value.

An item's influence on a metric is how much the metric moves by it: for a mean its deviation / n, for a ratio (bits per
byte) its residual / whole, over the number of sets for a score that is a mean over sets. The influences of the same
item on both sides are subtracted before they are squared, so that what is hard for both models is no noise.
Source: Cochran 1977, chapters 6 and 9A (ratios, clusters).
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.intervals import Difference, mcnemar, student

Result = Mapping[str, Any]  # as `harness.measure` gives it
Key = tuple[str, str]  # set and place of an item


@dataclass(frozen=True)
class _Influences:
    of_item: dict[Key, float]
    cluster: dict[Key, str]  # within its set
    value: dict[Key, Any]
    num_sets: int


def difference(first: Sequence[Result], second: Sequence[Result], metric: str) -> Difference | None:
    """Second minus first, each the mean over its seeds; None where they were not measured on the same items.

    With several seeds, their spread is part of the error. Exact McNemar's p for single models that are right or wrong
    on independent items of one set, else Student's t.
    """
    if any(metric not in result["metrics"] for result in [*first, *second]):
        return None
    sides = [[_influences(result, metric) for result in side] for side in (first, second)]
    keys = set(sides[0][0].of_item)
    if len(keys) < 2 or any(set(one.of_item) != keys for side in sides for one in side):
        return None
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for key in keys:
        means = [statistics.fmean(one.of_item[key] for one in side) for side in sides]
        sums[key[0]][sides[0][0].cluster[key]] += means[1] - means[0]
    values = [[float(result["metrics"][metric]["value"]) for result in side] for side in (first, second)]
    value = statistics.fmean(values[1]) - statistics.fmean(values[0])
    # Variances of the difference, each with its degrees of freedom.
    parts = [(statistics.variance(side) / len(side), len(side) - 1) for side in values if len(side) > 1]
    counts = {name: len(own) for name, own in sums.items()}
    if min(counts.values()) > 1:
        for name, n in counts.items():
            parts.append((sum(s * s for s in sums[name].values()) * n / (n - 1), n - 1))
    elif len(counts) > 1:  # a set of one item says nothing of its noise
        parts = []
    half, p = student(value, parts)
    if all(len(side) == 1 for side in sides) and _is_right_or_wrong([sides[0][0], sides[1][0]], sum(counts.values())):
        pairs = [(sides[0][0].value[key], sides[1][0].value[key]) for key in keys]
        p = mcnemar(sum(a > b for a, b in pairs), sum(b > a for a, b in pairs))
    return Difference(value, value - half, value + half, len(keys), p)


def _is_right_or_wrong(sides: Sequence[_Influences], num_clusters: int) -> bool:
    is_plain = all(side.num_sets == 1 and num_clusters == len(side.of_item) for side in sides)
    return is_plain and all(v in (0, 1) for side in sides for v in side.value.values() if not isinstance(v, list))


def _influences(result: Result, metric: str) -> _Influences:
    """How much each item moves the metric; items that lack it are left out."""
    items = result["items"]
    columns = (items["set"], items["where"], items["cluster"], items["values"].get(metric, []))
    found = [row for row in zip(*columns, strict=False) if row[3] is not None]
    pair = {(name, where): v if isinstance(v, list) else [v, 1.0] for name, where, _, v in found}
    sets: dict[str, list[Key]] = defaultdict(list)
    for key in pair:
        sets[key[0]].append(key)
    of_item: dict[Key, float] = {}
    for keys in sets.values():
        part, whole = (sum(pair[key][side] for key in keys) for side in (0, 1))
        for key in keys:
            residual = pair[key][0] - part / whole * pair[key][1] if whole else 0.0
            of_item[key] = residual / (whole or 1.0) / len(sets)
    cluster = {(name, where): group or where for name, where, group, _ in found}
    return _Influences(of_item, cluster, {(name, where): v for name, where, _, v in found}, len(sets))
