"""Metrics of generated text."""

import math

import pytest

from eval.metrics import bleu, rouge_l
from eval.metrics.distinct_n import distinct_n


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    # Longest common subsequence "the sat on mat": 4 of 5 words predicted, 4 of 6 in the reference.
    precision, recall = 4 / 5, 4 / 6
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l.of_one("the dog sat on mat", "the cat sat on the mat") == pytest.approx(expected)


def test_rouge_l_takes_the_best_reference() -> None:
    assert rouge_l.rouge_l(["a b", "c d"], [["x", "a b"], "c x"]) == pytest.approx((1 + 0.5) / 2)


def test_bleu_is_the_geometric_mean_of_ngram_precisions() -> None:
    # "the cat sat on a mat" against "the cat sat on the mat": 5 of 6, 3 of 5, 2 of 4, 1 of 3; equal lengths.
    expected = math.prod([5 / 6, 3 / 5, 2 / 4, 1 / 3]) ** (1 / 4)
    assert bleu.bleu(["the cat sat on a mat"], ["the cat sat on the mat"]) == pytest.approx(expected)


def test_bleu_takes_rows_with_different_numbers_of_references() -> None:
    texts = ["one two three four five", "six seven eight nine ten"]
    assert bleu.bleu(texts, [texts[0], ["something else", texts[1]]]) == 1.0


def test_empty_answers_score_nothing() -> None:
    assert (bleu.bleu(["", ""], ["a b", "c"]), rouge_l.rouge_l([""], ["a"]), distinct_n([""])) == (0, 0, 0)


def test_distinct_counts_different_pairs_of_words_within_a_text() -> None:
    # a b, b a, a b | c d: three different ones of four.
    assert distinct_n(["a b a b", "c d", "e"]) == 3 / 4
    assert distinct_n(["a b a b", "c d", "e"], n=1) == 5 / 7
