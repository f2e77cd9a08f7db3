"""Intervals, paired differences, and what difference could be seen at all: every number's error bar.

All intervals are at 95 %. Sources: Wilson 1927 (proportions); Cochran 1977, chapter 6 (ratios) and 9A (clusters);
Holm 1979; McNemar 1947, exact form.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
_Z = float(stats.norm.ppf((1 + LEVEL) / 2))
_POWER_Z = float(stats.norm.ppf(0.8))  # a difference is called detectable if it is seen four times in five


# As JSON has an estimate or a difference: the interval is null where it is not known, because there is one item only.
Told = Mapping[str, Any]


Items = tuple[Sequence[float], Sequence[float], Sequence[Hashable] | None]  # of one set: parts, wholes, clusters


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int  # items it was measured on


def proportion(successes: float, n: float) -> Estimate:
    """A share of independent items, by Wilson's interval; half successes (ties) are allowed."""
    if n == 0:
        return Estimate(0.0, 0.0, 1.0, 0)
    share, z2 = successes / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), int(n))


def clustered_proportion(successes: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """A share of items in clusters; see `over_sets`."""
    return over_sets([(successes, [1.0] * len(successes), clusters)])


def ratio(parts: Sequence[float], wholes: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """sum(parts) / sum(wholes) by Student's t, where items or clusters are independent.

    With wholes of 1 it is the mean. With bits and bytes of texts it is bits per byte.

    Args:
        clusters: items of the same cluster (the same prompt) count as one observation; None: each is its own.
    """
    value, variances = _spread(parts, wholes, clusters)
    half, _ = student(value, variances)
    return Estimate(value, value - half, value + half, len(parts))


def _spread(
    parts: Sequence[float], wholes: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[float, list[tuple[float, int]]]:
    """A ratio and, for `student`, its variance with the degrees of freedom; none where it is of one group."""
    part_N, whole_N = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    total = float(whole_N.sum())
    if total == 0:
        return 0.0, []
    value = float(part_N.sum()) / total
    residual_N = part_N - value * whole_N
    if clusters is not None:
        _, index_N = np.unique(np.array([hash(c) for c in clusters]), return_inverse=True)
        residual_N = np.asarray(np.bincount(index_N, weights=residual_N), dtype=float)
    num_groups = len(residual_N)
    if num_groups < 2:
        return value, []
    return value, [(float((residual_N**2).sum()) * num_groups / (num_groups - 1) / total**2, num_groups - 1)]


def student(value: float, variances: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Half of the interval of a value, and its two-sided p-value against 0; infinite and 1 where nothing is known.

    Args:
        variances: independent ones that add up to the value's, each with its degrees of freedom. If all are 0, few
            observations that agree are no certainty: the p-value of a value other than 0 is the sign test's.
    Source: Welch 1947.
    """
    total = sum(variance for variance, _ in variances)
    if not variances:
        return np.inf, 1.0
    if total == 0:
        return (np.inf, 2.0 * 0.5 ** sum(degrees + 1 for _, degrees in variances)) if value else (0.0, 1.0)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * sqrt(total)
    return half, float(2 * stats.t.sf(abs(value) / sqrt(total), freedom))


def over_sets(sets: Sequence[Items]) -> Estimate:
    """The unweighted mean over independent sets of sum(parts) / sum(wholes): a folder's score.

    By Student's t; unknown where a set has one item or cluster only. Shares get Wilson's interval for as many items as
    would leave the same error; where nothing varies or a set has one item, as if the share were the same in all sets.
    Source: Korn and Graubard 1998; Dean and Pagano 2015.
    """
    count, n = len(sets), sum(len(parts) for parts, _, _ in sets)
    spreads = [_spread(*one) for one in sets]
    value = sum(own for own, _ in spreads) / count
    variances = [(variance / count**2, degrees) for _, own in spreads for variance, degrees in own]
    half, _ = student(value, variances if len(variances) == count else [])
    if any(set(wholes) != {1.0} or not set(parts) <= {0.0, 0.5, 1.0} for parts, wholes, _ in sets):
        return Estimate(value, value - half, value + half, n)
    effective = count**2 / sum(1 / len(set(clusters) if clusters else parts) for parts, _, clusters in sets)
    is_plain = count == 1 and not sets[0][2]  # independent items: their number is known, not estimated
    if 0 < half < np.inf and not is_plain:
        effective = min(n, value * (1 - value) * (_Z / half) ** 2)
    found = proportion(value * effective, effective)
    return Estimate(value, found.low, found.high, n)


def detectable(estimate: Estimate) -> float:
    """The smallest difference between two models that as many other items would show, 4 times in 5.

    Pairing the same items (`paired_difference`) usually shows smaller ones.
    """
    error = (estimate.high - estimate.low) / (2 * _Z)
    return sqrt(2) * (_Z + _POWER_Z) * error


@dataclass(frozen=True)
class Difference:
    """Second minus first on the same items, with its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    n: int
    p: float


def as_json(found: Estimate | Difference) -> dict[str, float | None]:
    """The fields by name; null for what is not finite."""
    return {name: value if isfinite(value) else None for name, value in vars(found).items()}


def told(found: Told, form: str = ".4f") -> str:
    """A value and its interval, if it has one, to be read."""
    value, *ends = (found[name] for name in ("value", "low", "high"))
    interval = " to ".join(format(end, form) for end in ends if end is not None)
    return f"{value:{form}} ({interval})" if interval else f"{value:{form}}"


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Difference:
    """The mean difference on the same items: exact McNemar's p for right and wrong, else Student's t.

    Args:
        clusters: as in `ratio`; with clusters p is Student's.
    """
    difference_N = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    value, variances = _spread(difference_N.tolist(), [1.0] * len(difference_N), clusters)
    half, p = student(value, variances)
    if clusters is None and set(first) | set(second) <= {0.0, 1.0}:
        p = mcnemar(int((difference_N < 0).sum()), int((difference_N > 0).sum()))
    return Difference(value, value - half, value + half, len(difference_N), p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two models are equally often right, from the items on which they differ."""
    n = only_first + only_second
    return float(stats.binomtest(only_first, n).pvalue) if n else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = running
    return corrected
