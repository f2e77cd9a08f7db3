"""Test rows with what a model and the baselines say of them, and the numbers that follow."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import intervals
from eval.intervals import Difference, Estimate
from eval.metrics.accuracy import accuracy
from eval.metrics.auroc import auroc
from eval.metrics.average_precision import average_precision
from eval.metrics.calibration_error import calibration_error
from eval.metrics.f1 import f1
from eval.metrics.log_loss import log_loss
from eval.metrics.mcc import mcc

RESAMPLES = 200  # of the bootstrap: an interval's ends are then right to about a tenth of its width


@dataclass(frozen=True)
class Answers:
    """One classifier's answers to the test rows."""

    scores: np.ndarray  # (N rows, C labels) probabilities, or any scores whose order counts
    chosen: np.ndarray  # (N,) number of the label
    truth: np.ndarray  # (N,)
    has_probabilities: bool
    positive: int | None  # whose F1 is given; None: the mean over labels

    @property
    def is_right(self) -> np.ndarray:
        """1.0 where the chosen label is the true one."""
        return (self.chosen == self.truth).astype(float)

    def metrics(self) -> dict[str, float]:
        """Accuracy, F1, MCC, areas; of probabilities also log-loss and calibration error."""
        chosen, truth = self.chosen.tolist(), self.truth.tolist()
        found = {
            "accuracy": accuracy(chosen, truth),
            "f1": f1(chosen, truth, self.positive),
            "f1_macro": f1(chosen, truth),
            "mcc": mcc(chosen, truth),
        }
        from_scores: list[Callable[..., float]] = [auroc, average_precision]
        if self.has_probabilities:
            from_scores += [log_loss, calibration_error]
        return found | {metric.__name__: metric(self.scores, truth) for metric in from_scores}

    def with_intervals(self) -> dict[str, Estimate]:
        """Each metric with its 95 % interval: Wilson's for accuracy, the percentile bootstrap over rows for others."""
        values, n = self.metrics(), len(self.truth)
        draw = np.random.default_rng(0)
        resampled = [self._rows(draw.integers(0, n, n)).metrics() for _ in range(RESAMPLES)]
        found = {}
        for name, value in values.items():
            low, high = np.nanquantile([sample[name] for sample in resampled], [0.025, 0.975])
            found[name] = Estimate(value, float(low), float(high), n)
        return found | {"accuracy": intervals.proportion(float(self.is_right.sum()), n)}

    def _rows(self, index_N: np.ndarray) -> "Answers":
        return Answers(
            self.scores[index_N], self.chosen[index_N], self.truth[index_N], self.has_probabilities, self.positive
        )


@dataclass(frozen=True)
class Judged:
    """The test rows with the answers of the model and of each baseline."""

    rows: list[dict[str, Any]]  # of `predictions.jsonl`
    labels: list[str]
    positive: int | None

    @functools.cached_property
    def model(self) -> Answers:
        """The model's answers."""
        return self._answers([row["probabilities"] for row in self.rows], "chosen")

    @functools.cached_property
    def measured(self) -> dict[str, Estimate]:
        """The model's metrics with their intervals."""
        return self.model.with_intervals()

    @functools.cached_property
    def baselines(self) -> dict[str, Answers]:
        """Each baseline's answers."""
        names = [name for name in self.rows[0]["baselines"] if all(name in row["baselines"] for row in self.rows)]
        return {name: self._answers([row["baselines"][name] for row in self.rows]) for name in names}

    def _answers(self, scores: Sequence[Sequence[float]], chosen: str | None = None) -> Answers:
        score_NC = np.array(scores)
        chosen_N = np.array([row[chosen] for row in self.rows]) if chosen else score_NC.argmax(1)
        truth_N = np.array([row["truth"] for row in self.rows])
        return Answers(score_NC, chosen_N, truth_N, chosen is not None, self.positive)

    def best_baseline(self) -> str:
        """The baseline with the highest accuracy; of equal ones the one with the higher F1."""
        scored = {name: answers.metrics() for name, answers in self.baselines.items()}
        return max(scored, key=lambda name: (scored[name]["accuracy"], scored[name]["f1"]))

    def against(self, baseline: str) -> Difference:
        """The model's accuracy minus the baseline's on the same rows, with McNemar's exact p."""
        other = self.baselines[baseline].is_right.tolist()
        return intervals.paired_difference(other, self.model.is_right.tolist())

    def confusion(self) -> list[list[int]]:
        """How often each true label (row) was given each label (column)."""
        from sklearn.metrics import confusion_matrix

        found: np.ndarray = confusion_matrix(self.model.truth, self.model.chosen, labels=range(len(self.labels)))
        return found.tolist()

    def per_label(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and number of rows of each label."""
        from sklearn.metrics import precision_recall_fscore_support

        columns = precision_recall_fscore_support(
            self.model.truth, self.model.chosen, labels=range(len(self.labels)), zero_division=0
        )
        rows = zip(self.labels, *(column.tolist() for column in columns), strict=True)
        return {label: {"precision": p, "recall": r, "f1": f1, "n": n} for label, p, r, f1, n in rows}

    def mistakes(self, count: int = 20) -> list[dict[str, Any]]:
        """The rows on which the model is wrong with the highest probability."""
        wrong = [row for row in self.rows if row["chosen"] != row["truth"]]
        return sorted(wrong, key=lambda row: -row["probabilities"][row["chosen"]])[:count]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a `predictions.jsonl`."""
    return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
