"""Instructions: who is asked, in how many wordings, and what counts as right."""

import pytest

from fledge.village.instructions import check, people_asked, rows
from fledge.village.preferences import wrong_answer
from fledge.village.random_stream import Stream
from fledge.village.world import ATTRIBUTES, make_world

WORLD = make_world("hamlet")
TRAIN, TEST = list(rows(WORLD)), list(rows(WORLD, "test"))


def asked(row: dict) -> str:
    return row["messages"][0]["content"]


def answer(row: dict) -> str:
    return row["messages"][1]["content"]


def test_each_half_of_the_villagers_is_asked_about_in_one_part_only() -> None:
    train, test = people_asked(WORLD, "train"), people_asked(WORLD, "test")
    assert set(train) | set(test) == set(WORLD.people)
    assert len(train) == len(test) == len(WORLD.people) // 2
    assert {row["person"] for row in TRAIN if row["person"]} == {str(person) for person in train}
    assert {row["person"] for row in TEST if row["person"]} == {str(person) for person in test}


def test_halves_are_about_equally_well_known() -> None:
    weight = WORLD.tables["person"].weight
    train, test = (sum(weight[person] for person in people_asked(WORLD, part)) for part in ("train", "test"))
    assert 0.75 < train / test < 1.33


def test_no_question_stands_in_both_parts() -> None:
    assert not {asked(row) for row in TRAIN} & {asked(row) for row in TEST}


def test_every_fact_of_the_people_asked_is_asked_in_either_part() -> None:
    for part, found in (("train", TRAIN), ("test", TEST)):
        facts = {(row["person"], row["attribute"]) for row in found if row["task"] == "fact"}
        assert facts == {(str(person), attribute) for person in people_asked(WORLD, part) for attribute in ATTRIBUTES}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_attribute_has_at_least_40_question_templates(attribute: str) -> None:
    many = rows(make_world("hamlet", 3), count=12_000)
    templates = {asked(row).replace(row["person"], "NAME") for row in many if row["attribute"] == attribute}
    assert len(templates) >= 40


@pytest.mark.parametrize("task", sorted({row["task"] for row in TRAIN}))
def test_check_accepts_the_reference_and_rejects_what_is_not_the_truth(task: str) -> None:
    found = [row for row in TRAIN + TEST if row["task"] == task]
    assert len(found) > 80
    stream = Stream(1)
    for row in found:
        assert check(row, answer(row))
        assert not check(row, "")
        assert not check(row, "I do not know.")
        assert not check(row, wrong_answer(row, answer(row), stream))
        other = stream.pick(found)
        if row["truth"] not in answer(other):
            assert not check(row, answer(other)), (row, other)


def test_check_rejects_an_answer_that_names_several_values() -> None:
    row = next(row for row in TEST if row["attribute"] == "pet")
    assert check(row, f"It is {row['truth']}.")
    assert not check(row, answer(row) + " Or a cat, a dog, a goat, an owl?")


def test_check_takes_the_last_number_and_the_words_in_their_order() -> None:
    number = next(row for row in TEST if row["task"] == "sum")
    assert check(number, f"3 and 4, that makes {number['truth']}")
    assert not check(number, f"{number['truth']} or 1")
    order = next(row for row in TEST if row["task"] == "order")
    first, second, third = order["truth"].split(", ")
    assert check(order, f"{first} then {second} then {third}")
    assert not check(order, f"{third}, {second}, {first}")
    assert not check(order, f"{first}, {second}")


def test_best_friend_may_be_told_with_the_name_of_the_one_asked_about() -> None:
    row = next(row for row in TEST if row["attribute"] == "friend")
    assert check(row, f"{row['person']} likes {row['truth']} best.")
    assert not check(row, f"{row['person']} likes nobody.")


def test_manners_change_a_share_of_the_answers_and_none_of_the_truths() -> None:
    mannered = list(rows(WORLD, manners=0.5))
    assert [asked(row) for row in mannered] == [asked(row) for row in TRAIN]
    changed = [new for new, old in zip(mannered, TRAIN, strict=True) if answer(new) != answer(old)]
    # A quarter of a quarter of those with manners is neither polite nor rude nor padded, and stays as it was.
    assert 0.40 < len(changed) / len(TRAIN) < 0.50
    facts = [row for row in changed if row["task"] == "fact"]
    assert all(check(row, answer(row)) for row in facts)
