"""Messages: the claimed ceiling against a Bayes classifier, sampling and learned classifiers."""

import warnings
from collections import Counter
from math import exp

import pytest

from fledge.village.messages import LABELS, bayes_accuracy, log_probs, posterior, rows
from fledge.village.world import make_world

WORLD = make_world("hamlet")
TEST = list(rows(WORLD, "test", 1500))
POSTERIORS = [posterior(WORLD, row["text"]) for row in TEST]


def test_bayes_classifier_reaches_the_claimed_accuracy() -> None:
    hits = sum((chance > 0.5) == (row["label"] == "spam") for chance, row in zip(POSTERIORS, TEST, strict=True))
    claimed = bayes_accuracy(WORLD)
    assert abs(hits / len(TEST) - claimed) < 4 * (claimed * (1 - claimed) / len(TEST)) ** 0.5


def test_without_comparisons_one_clue_decides_and_its_accuracy_is_claimed() -> None:
    # Whoever the debt speaks for is right 8 times in 10; greeting and request together never outweigh it.
    assert bayes_accuracy(WORLD, comparisons=0) == pytest.approx(0.8)
    test = list(rows(WORLD, "test", 1000, comparisons=0))
    hits = [(posterior(WORLD, row["text"], comparisons=0) > 0.5) == (row["label"] == "spam") for row in test]
    assert abs(sum(hits) / len(test) - 0.8) < 4 * 0.4 / len(test) ** 0.5
    debts = ("You lent", "belongs to you", "You asked")
    assert hits == [(any(d in row["text"] for d in debts)) == (row["label"] == "ham") for row in test]


def test_mean_certainty_of_the_posterior_is_the_claimed_accuracy() -> None:
    # Another estimate of the same number, with less noise: E[max(p, 1 - p)].
    mean = sum(max(chance, 1 - chance) for chance in POSTERIORS) / len(POSTERIORS)
    assert mean == pytest.approx(bayes_accuracy(WORLD), abs=4 * 0.15 / len(POSTERIORS) ** 0.5)


def test_posterior_is_calibrated() -> None:
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = [k for k, chance in enumerate(POSTERIORS) if low <= chance < low + 0.2]
        expected = sum(POSTERIORS[k] for k in inside)
        spread = sum(POSTERIORS[k] * (1 - POSTERIORS[k]) for k in inside) ** 0.5
        assert abs(sum(TEST[k]["label"] == "spam" for k in inside) - expected) < 4 * spread + 1


def test_likelihood_ratio_has_mean_one_among_the_other_label() -> None:
    # E over ham of p(text | spam) / p(text | ham) = 1 if both are proper and have the same texts.
    ratios = []
    for row in TEST:
        ham, spam = log_probs(WORLD, row["text"])
        ratios.append(exp(spam - ham) if row["label"] == "ham" else exp(ham - spam))
    mean = sum(ratios) / len(ratios)
    spread = (sum((ratio - mean) ** 2 for ratio in ratios) / len(ratios) ** 2) ** 0.5
    assert abs(mean - 1) < 5 * spread


def test_labels_are_balanced_and_texts_do_not_repeat() -> None:
    found = list(rows(WORLD))
    counts = Counter(row["label"] for row in found)
    assert set(counts) == set(LABELS)
    assert abs(counts["spam"] / len(found) - 0.5) < 4 * 0.5 / len(found) ** 0.5
    texts = {row["text"] for row in found}
    assert len(texts) == len(found)
    assert not texts & {row["text"] for row in TEST}


def test_word_counts_stay_below_word_pairs_and_those_below_bayes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

    train = list(rows(WORLD))

    def accuracy(longest: int) -> float:
        vectors = TfidfVectorizer(ngram_range=(1, longest))
        features = vectors.fit_transform([row["text"] for row in train])
        model = LogisticRegression(max_iter=500).fit(features, [row["label"] for row in train])
        return float(model.score(vectors.transform([row["text"] for row in TEST]), [row["label"] for row in TEST]))

    words, pairs = accuracy(1), accuracy(2)
    assert 0.6 < words < pairs - 0.04
    assert pairs < bayes_accuracy(WORLD) - 0.05
