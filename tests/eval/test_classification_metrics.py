"""Classification metrics, against scikit-learn and sums by hand."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from eval.metrics.accuracy import accuracy
from eval.metrics.auroc import auroc
from eval.metrics.average_precision import average_precision
from eval.metrics.calibration_error import calibration_error
from eval.metrics.f1 import f1
from eval.metrics.log_loss import log_loss
from eval.metrics.mcc import mcc

RANDOM = np.random.default_rng(0)
TRUE = RANDOM.integers(0, 3, 60)
PROBABILITIES = RANDOM.dirichlet([1, 1, 1], 60)
GUESSES = PROBABILITIES.argmax(1)


def test_label_metrics_equal_scikit_learns() -> None:
    guesses, true = GUESSES.tolist(), TRUE.tolist()
    assert accuracy(guesses, true) == pytest.approx(oracle.accuracy_score(true, guesses))
    assert f1(guesses, true) == pytest.approx(oracle.f1_score(true, guesses, average="macro"))
    assert f1(guesses, true, positive=2) == pytest.approx(oracle.f1_score(true, guesses, average=None)[2])
    assert mcc(guesses, true) == pytest.approx(oracle.matthews_corrcoef(true, guesses))


def test_probability_metrics_equal_scikit_learns() -> None:
    rows, true = PROBABILITIES.tolist(), TRUE.tolist()
    assert auroc(rows, true) == pytest.approx(oracle.roc_auc_score(TRUE, PROBABILITIES, multi_class="ovr"))
    one_hot = np.eye(3)[TRUE]
    assert average_precision(rows, true) == pytest.approx(oracle.average_precision_score(one_hot, PROBABILITIES))
    assert log_loss(rows, true) == pytest.approx(oracle.log_loss(TRUE, PROBABILITIES))


def test_two_columns_say_the_same_as_the_probability_of_label_1() -> None:
    scores, true = PROBABILITIES[:, 0].tolist(), (TRUE == 0).astype(int).tolist()
    columns = [[1 - p, p] for p in scores]
    for metric in (auroc, average_precision, log_loss, calibration_error):
        assert metric(scores, true) == pytest.approx(metric(columns, true)), metric.__name__


def test_a_label_that_nobody_has_is_left_out_of_the_areas() -> None:
    rows = np.hstack([PROBABILITIES * 0.9, np.full((60, 1), 0.1)])
    assert auroc(rows.tolist(), TRUE.tolist()) == pytest.approx(auroc(PROBABILITIES.tolist(), TRUE.tolist()))


def test_calibration_error_by_hand() -> None:
    # Two bins of width 1/2: confidences 0.9 0.9 0.7 (mean 0.8333) in the upper, two of three right (0.6667).
    assert calibration_error([0.9, 0.1, 0.7], [1, 0, 0], bins=2) == pytest.approx(0.8333333 - 0.6666667)


def test_a_probability_of_zero_for_the_truth_is_finite() -> None:
    assert log_loss([0.0], [1]) == pytest.approx(-np.log(1e-12))


def test_names_are_labels_too() -> None:
    # spam: predicted 2, true 2, both 1: F1 = 2 * 1 / 4.
    assert f1(["spam", "spam", "ham"], ["spam", "ham", "spam"], positive="spam") == 0.5
