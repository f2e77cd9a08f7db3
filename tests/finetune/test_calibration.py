"""Temperature and threshold."""

import numpy as np
import pytest
from scipy.special import softmax

from finetune import calibration

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(true_temperature: float) -> None:
    logits = RANDOM.normal(0, 3, (20_000, 3))
    shares = softmax(logits / true_temperature, axis=1)
    truth = (RANDOM.random((20_000, 1)) > shares.cumsum(1)).sum(1).clip(max=2)
    # 20,000 labels leave about 2 % of doubt.
    assert calibration.temperature(logits, truth) == pytest.approx(true_temperature, rel=0.05)


def test_perfect_answers_do_not_make_it_run_away() -> None:
    logits = np.array([[0.5, -0.5], [-0.5, 0.5]])
    assert calibration.temperature(logits, np.array([0, 1])) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("best", ["f1", "accuracy"])
def test_the_threshold_is_as_good_as_any_other(best: str, positive: int) -> None:
    truth = RANDOM.integers(0, 2, 60)
    probabilities = np.round(np.clip(truth * 0.3 + RANDOM.random(60) * 0.7, 0, 1), 1)

    def score(threshold: float) -> float:
        chosen, wanted = (probabilities >= threshold) == positive, truth == positive
        both = chosen.sum() + wanted.sum()
        return 2 * (chosen & wanted).sum() / both if best == "f1" else (chosen == wanted).mean()

    found = calibration.threshold(probabilities, truth, best, positive)  # type: ignore[arg-type]
    assert score(found) == max(score(t) for t in np.linspace(0, 1, 101))


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken() -> None:
    probabilities, truth = np.array([0.05, 0.45, 0.75, 0.95]), np.array([0, 1, 0, 1])
    # Of four answers three are right with thresholds in (0.05, 0.45) and in (0.75, 0.95).
    assert calibration.threshold(probabilities, truth, "accuracy") == pytest.approx(0.25)
    assert calibration.threshold(1 - probabilities, 1 - truth, "accuracy") == pytest.approx(0.75)
