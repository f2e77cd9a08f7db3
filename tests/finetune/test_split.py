"""Near-duplicates, and the parts that labelled texts are split into."""

import random

import pytest

from finetune import split as split_module
from finetune.config import SplitConfig
from finetune.near_duplicates import group, normal_form
from finetune.split import split
from fledge.data import labelled
from fledge.data.labelled import Example
from fledge.errors import DataError

PRIZES = [
    "URGENT! You have won a 900 pound prize. Call 09061701461 now",
    "urgent, you have won a 350 pound prize: call 08712300220 NOW!!",
    "Urgent you have won a 100 pounds prize. Call 09061743806 now.",
]
OTHERS = ["See you at the station at six then", "Ok lar, joking with you only", "call me when you are home"]


def examples(count: int) -> list[Example]:
    return labelled.read([f"village:hamlet/messages#{count}"]).examples


def test_the_normal_form_masks_what_copies_differ_in() -> None:
    assert normal_form("Call  0906-17 NOW!!") == normal_form("call 1234 56, now")
    assert normal_form("\N{FULLWIDTH LATIN CAPITAL LETTER C}all me") == normal_form("call me")


def test_near_duplicates_are_one_group_and_others_are_not() -> None:
    groups = group(PRIZES + OTHERS)
    assert len(set(groups[:3])) == 1
    assert len(set(groups)) == 4


def test_groups_equal_those_of_comparing_all_pairs() -> None:
    texts = [f"{prize} {n % 7} {word}" for n, word in enumerate(["x", "yes", "maybe so"]) for prize in PRIZES]
    texts += [*OTHERS, ""]
    shingles = [{form[i : i + 5] for i in range(max(1, len(form) - 4))} for form in (normal_form(t) for t in texts)]
    own = list(range(len(texts)))
    for a in range(len(texts)):
        for b in range(a):
            if len(shingles[a] & shingles[b]) >= 0.7 * len(shingles[a] | shingles[b]):
                own = [own[a] if number == own[b] else number for number in own]
    pairs = {(a, b) for a in range(len(texts)) for b in range(a) if own[a] == own[b]}
    groups = group(texts)
    assert {(a, b) for a in range(len(texts)) for b in range(a) if groups[a] == groups[b]} == pairs


def test_pairs_within_a_frame_that_all_texts_share_are_found() -> None:
    letters = random.Random(0)

    def word(length: int) -> str:
        return "".join(letters.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))

    frame, own = word(240), [word(24) for _ in range(300)]
    groups = group([frame + own[n // 2] + word(32) for n in range(600)])  # 0.80 alike in a pair, 0.68 else
    assert groups[::2] == groups[1::2]
    assert len(set(groups)) == 300


def test_texts_without_letters_are_compared_as_they_are() -> None:
    assert len(set(group(["!!!", "?", ":-)", "\U0001f600", "\U0001f621", "!!!"]))) == 5


def test_parts_are_whole_disjoint_and_of_about_the_shares_asked_for() -> None:
    parts = split(examples(1000), SplitConfig(), 0.1)
    assert sorted(parts.train + parts.validation + parts.test) == list(range(1000))
    assert 150 < len(parts.test) < 250
    assert 50 < len(parts.validation) < 110


def test_order_does_not_move_a_text_to_another_part() -> None:
    rows = examples(200)
    shuffled = random.Random(0).sample(rows, len(rows))
    first, second = ({of[index].text for index in split(of, SplitConfig(), 0.1).test} for of in (rows, shuffled))
    assert first == second


def test_order_does_not_move_copies_to_another_part() -> None:
    rows = [Example("x", f"{prize} {word * 9}", None, word) for word in "abcdefghij" for prize in PRIZES[:1] + OTHERS]
    rows += [Example("x", row.text + "!s", None, row.label) for row in rows]
    first, second = ({of[index].text for index in split(of, SplitConfig(), 0.1).test} for of in (rows, rows[::-1]))
    assert first == second


def test_copies_stand_on_one_side() -> None:
    rows = examples(100)
    copies = [Example("x", row.text.replace("pence", "PENCE!"), None, row.label) for row in rows]
    parts = split(rows + copies, SplitConfig(), 0.1)
    for part in (parts.train, parts.validation, parts.test):
        assert {index % 100 for index in part if index < 100} == {index % 100 for index in part if index >= 100}


def test_each_text_is_tested_in_one_fold() -> None:
    rows = examples(200)
    tested = [index for fold in range(4) for index in split(rows, SplitConfig(num_folds=4, fold=fold), 0.1).test]
    assert sorted(tested) == list(range(200))


def test_folds_are_grouped_once() -> None:
    before = split_module._grouped.cache_info().misses
    for fold in range(3):
        split(examples(50), SplitConfig(num_folds=3, fold=fold), 0.1)
    assert split_module._grouped.cache_info().misses == before + 1


def test_a_label_budget_is_kept_and_draws_differ() -> None:
    rows = examples(300)
    draws = [split(rows, SplitConfig(labels=20, draw=draw), 0.1) for draw in (0, 0, 1)]
    assert [len(draw.train) for draw in draws] == [20, 20, 20]
    assert draws[0].train == draws[1].train != draws[2].train
    assert draws[0].test == draws[2].test
    assert draws[0].validation == []


def test_too_few_rows_say_so() -> None:
    rows = [Example("a:1", "one", None, "x"), Example("a:2", "two", None, "y")]
    with pytest.raises(DataError, match=r"the (train|test) part has .*: too few rows to split"):
        split(rows, SplitConfig(), 0.1)
    with pytest.raises(
        DataError, match=r"of fold 1 has .*: too few rows to split; .*, or another number than --folds 3"
    ):
        split(rows, SplitConfig(num_folds=3, fold=1), 0.1)
    with pytest.raises(DataError, match="--label-budget 500: there are"):
        split(examples(100), SplitConfig(labels=500), 0.1)
