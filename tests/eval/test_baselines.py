"""The n-gram model against a slow one that follows the formula, and as a distribution."""

import collections
from collections.abc import Sequence
from math import log

import numpy as np
import pytest

from eval.baselines import NgramModel, compressed_bits_per_byte, ngram_bits_per_byte
from eval.token_tree import Tokens

VOCABULARY = 6
TEXT = np.random.default_rng(0).choice(VOCABULARY, 400, p=[0.4, 0.3, 0.1, 0.1, 0.06, 0.04])


def slow_probability(ids: Sequence[int], word: int, before: tuple[int, ...], highest: bool = True) -> float:
    """Chen and Goodman's interpolated Kneser-Ney by recursion, each count taken anew."""
    size = len(before) + 1
    grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    if highest:
        counts = collections.Counter(grams)
    else:
        longer = {tuple(ids[i - 1 : i + size]) for i in range(1, len(ids) - size + 1)}
        counts = collections.Counter(gram[1:] for gram in longer)
    shorter = slow_probability(ids, word, before[1:], False) if before else 1 / VOCABULARY
    followers = {gram: count for gram, count in counts.items() if gram[:-1] == before}
    total = sum(followers.values())
    if total == 0:
        return shorter
    once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.5
    return (max(followers.get((*before, word), 0) - discount, 0) + discount * len(followers) * shorter) / total


def test_probabilities_are_those_of_the_formula() -> None:
    ids = np.array([0, 1, 0, 2, 5, 5, 3, 0, 1])
    found = NgramModel(TEXT, VOCABULARY, order=3).logprobs(ids)
    text = TEXT.tolist()
    first = log(slow_probability(text, 1, (0,), highest=False))
    rest = [log(slow_probability(text, int(ids[i]), tuple(ids[i - 2 : i].tolist()))) for i in range(2, len(ids))]
    assert found.tolist() == pytest.approx([first, *rest])


def test_totals_are_those_of_each_sequence_alone() -> None:
    model = NgramModel(TEXT, VOCABULARY, order=4)
    draw = np.random.default_rng(1)
    ids = [draw.integers(0, VOCABULARY, n).tolist() for n in (2, 3, 9, 30) * 400]
    alone = [float(model.logprobs(np.array(own))[max(0, len(own) - 6) :].sum()) for own in ids]
    found = model.totals([Tokens(own, max(0, len(own) - 6) + 1) for own in ids])
    assert found == pytest.approx(alone)


def test_probabilities_of_all_words_add_up_to_one() -> None:
    model = NgramModel(TEXT, VOCABULARY, order=5)
    for before in ([0, 1, 0, 0], [5, 5, 5, 5], [2, 0, 1, 3]):
        total = sum(float(np.exp(model.logprobs(np.array([*before, word]))[-1])) for word in range(VOCABULARY))
        assert total == pytest.approx(1)


def test_document_ends_cost_nothing() -> None:
    train, text = np.array([0, 1, 2, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 0, 1])
    found = ngram_bits_per_byte(NgramModel(train, 3, 2), [Tokens(text, 1)], num_bytes=4, end_of_text_id=0)
    logprobs = NgramModel(train, 3, 2).logprobs(text)
    assert found == pytest.approx(-(logprobs[0] + logprobs[1] + logprobs[3]) / log(2) / 4)


def test_more_context_helps_on_text_that_repeats() -> None:
    train = np.tile([0, 1, 2, 0, 2, 1], 100)
    values = [ngram_bits_per_byte(NgramModel(train, 3, n), [Tokens(train[:60], 1)], 59, -1) for n in (1, 2, 3)]
    assert values[0] > values[1] > values[2]
    assert values[2] < 0.1


def test_a_compressor_is_the_baseline_without_training_text() -> None:
    assert compressed_bits_per_byte(b"the same again. " * 1000) < 0.2
