"""Baselines, and collating."""

import numpy as np
import pytest
import torch

from finetune import baselines, collate
from finetune.collate import Row
from fledge.data.labelled import Example


def rows(count: int) -> list[Example]:
    words = ["prize", "dinner", "meeting"]
    return [Example(f"x:{n}", f"{words[n % 3]} at {n}", None, "cab"[n % 3]) for n in range(count)]


def test_baselines_give_a_score_for_each_label_and_learn_easy_ones() -> None:
    scores = baselines.scores(rows(30), rows(9), ["a", "b", "c"], balanced=False)
    truth = np.array([2, 0, 1] * 3)
    assert {name: score.shape for name, score in scores.items()} == dict.fromkeys(scores, (9, 3))
    assert (scores["tfidf_words_logistic_regression"].argmax(1) == truth).all()
    assert (scores["tfidf_characters_svm"].argmax(1) == truth).all()
    assert len(set(scores["majority"].argmax(1))) == 1


def test_texts_without_words_have_no_word_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [Example(f"x:{n}", "A C G T" if n % 2 else "T T A", None, "ab"[n % 2]) for n in range(8)]
    assert list(baselines.scores(texts, texts, ["a", "b"], balanced=False)) == ["majority", "tfidf_characters_svm"]
    assert "tfidf_words_logistic_regression is left out: the texts have no words" in capsys.readouterr().err


def test_a_label_that_no_training_row_has_is_never_chosen() -> None:
    scores = baselines.scores(rows(30), rows(9), ["a", "b", "c", "d"], balanced=True)
    assert all((score.argmax(1) != 3).all() for score in scores.values())


def test_of_many_rows_a_part_with_every_label_is_fitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = [*rows(30), Example("x:30", "alone", None, "d")], rows(9)
    whole = baselines.scores(train, test, ["a", "b", "c", "d"], balanced=False)
    assert whole["majority"][0, 3] == pytest.approx(1 / 31)
    monkeypatch.setattr(baselines, "FITTED_ROWS", 4)
    part = baselines.scores(train, test, ["a", "b", "c", "d"], balanced=False)
    assert 1 / 8 <= part["majority"][0, 3] <= 1 / 4
    assert {name: score.shape for name, score in part.items()} == dict.fromkeys(whole, (9, 4))
    assert "the baselines know 4 of the 31 rows to train on" in capsys.readouterr().err


def test_weights_are_one_on_average_and_repeating_evens_out_the_labels() -> None:
    own = [Row([1], 0)] * 6 + [Row([1], 1)] * 2
    kept, weights = collate.balanced(own, 2, "weights")
    assert kept == own
    assert weights == [8 / 12, 2.0]
    repeated, ones = collate.balanced(own, 2, "repeat")
    assert [row.label for row in repeated].count(1) == 6
    assert ones == [1.0, 1.0]


def test_a_batch_is_padded_to_the_right() -> None:
    batch = collate.collate([Row([5, 6, 7], 1), Row([8], 0)], pad_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["num_tokens"] == 4


def test_the_loss_is_the_weighted_sum_over_rows() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> "Fixed":
            self.logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
            return self

    batch = collate.collate([Row([5], 1), Row([8], 0)], pad_id=3)
    # Two rows of ln 2 nats, weighted 3 and 1.
    loss = collate.summed_loss([1.0, 3.0])(Fixed(), batch)
    torch.testing.assert_close(loss, 4 * torch.log(torch.tensor(2.0)))
