"""Preferences: the ceiling against the gold itself, and what the dials do."""

import pytest

from fledge.errors import DataError
from fledge.village.instructions import EVASIVE, PADDING, POLITE, check
from fledge.village.preferences import best_agreement, gold, rows, score
from fledge.village.world import make_world

WORLD = make_world("hamlet")


def pairs(count: int = 2000, **dials: float) -> list[dict]:
    return list(rows(WORLD, "train", count, **dials))


def agreement(found: list[dict]) -> float:
    """How often the answer of higher gold was chosen; ties count half."""
    return sum(
        0.5 if row["gold_chosen"] == row["gold_rejected"] else row["gold_chosen"] > row["gold_rejected"]
        for row in found
    ) / len(found)


@pytest.mark.parametrize("dials", [{}, {"temperature": 0.3}, {"label_noise": 0.2}, {"evasion": 0.5}])
def test_gold_agrees_as_often_as_the_ceiling_says(dials: dict) -> None:
    found = pairs(**dials)
    ceiling = best_agreement(found)
    assert abs(agreement(found) - ceiling) < 4 * (0.25 / len(found)) ** 0.5


def test_chance_of_a_choice_is_bradley_terry_of_the_golds() -> None:
    from math import exp

    for row in pairs(200, temperature=0.7):
        expected = 1 / (1 + exp(-(row["gold_chosen"] - row["gold_rejected"]) / 0.7))
        assert row["p_chosen"] == pytest.approx(expected, abs=1e-6)


def test_cold_choices_follow_gold_and_label_noise_turns_its_share_round() -> None:
    cold = [row for row in pairs(temperature=0.001) if row["gold_chosen"] != row["gold_rejected"]]
    assert all(row["gold_chosen"] > row["gold_rejected"] for row in cold)
    noisy = pairs(temperature=0.001, label_noise=0.2)
    assert best_agreement(noisy) == pytest.approx(0.8, abs=0.02)


def test_length_bias_makes_people_choose_long_answers_against_gold() -> None:
    def longer(found: list[dict]) -> float:
        return sum(len(row["chosen"].split()) > len(row["rejected"].split()) for row in found) / len(found)

    plain, biased = pairs(), pairs(length_bias=0.2)
    assert longer(plain) < 0.45 < 0.6 < longer(biased)
    assert agreement(biased) < agreement(plain) - 0.1


def test_same_answers_stand_behind_every_setting_of_the_dials() -> None:
    plain, biased = pairs(50), pairs(50, length_bias=0.2)
    assert [{a["chosen"], a["rejected"]} for a in plain] == [{b["chosen"], b["rejected"]} for b in biased]


def test_gold_by_hand() -> None:
    row = next(row for row in pairs(50) if row["attribute"] == "pet")
    right, wrong = f"{row['person']} keeps a {row['truth']}.", f"{row['person']} keeps something."
    answers = [right, wrong, f"Gladly. {right}", f"Gladly. Of course. {right}", f"Who cares? {right}"]
    assert score([row] * 5, answers) == [2.0, 0.0, 3.0, 3.0, 1.0]
    padded = f"{right} {PADDING[0]}"  # 4 + 9 words: one past the twelfth
    assert gold(row, padded) == 1.9


def test_politeness_and_padding_never_change_what_is_right() -> None:
    for row in pairs(300):
        right = [text for text in (row["chosen"], row["rejected"]) if gold(row, text) > 1.2]
        for text in right:
            assert gold(row, f"{POLITE[0]} {text} {PADDING[1]}") > gold(row, text) - 1.5


def test_impossible_dials_are_refused() -> None:
    with pytest.raises(DataError, match="temperature must be above 0"):
        pairs(temperature=0.0)
    with pytest.raises(DataError, match=r"label_noise in 0-0\.5"):
        pairs(label_noise=0.7)


def evades(answer: str) -> bool:
    return any(phrase in answer for phrase in EVASIVE)


@pytest.mark.parametrize(("evasion", "low", "high"), [(0.0, 0.0, 0.0), (0.3, 0.25, 0.35), (1.0, 1.0, 1.0)])
def test_stated_share_of_wrong_answers_evades_the_question(evasion: float, low: float, high: float) -> None:
    answers = [(row, row[side]) for row in pairs(evasion=evasion) for side in ("chosen", "rejected")]
    wrong = [evades(answer) for row, answer in answers if not check(row, answer)]
    assert low <= sum(wrong) / len(wrong) <= high
    assert not any(evades(answer) for row, answer in answers if check(row, answer))


def test_no_evasive_phrase_answers_any_question() -> None:
    assert not any(check(row, phrase) for row in pairs() for phrase in EVASIVE)
