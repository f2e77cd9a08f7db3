"""Canaries: unique, as many copies as stated, only in training."""

from collections import Counter

from fledge.village.canaries import COUNTS, canaries, rows
from fledge.village.stories import rows as story_rows
from fledge.village.world import make_world

WORLD = make_world("hamlet")


def test_canaries_are_unique_and_each_stands_as_often_as_it_says() -> None:
    planted = canaries(WORLD)
    assert len({canary.secret for canary in planted}) == len({canary.prefix for canary in planted}) == len(planted)
    seen = Counter(row["text"] for row in rows(WORLD) if row["copies"])
    assert {canary.text: canary.num_copies for canary in planted if canary.num_copies} == dict(seen)
    assert Counter(canary.num_copies for canary in planted) == dict.fromkeys(COUNTS, 4)


def test_the_stories_between_them_are_the_corpus_itself() -> None:
    found = [row["text"] for row in rows(WORLD, count=200) if not row["copies"]]
    assert found == [row["text"] for row in story_rows(WORLD, count=200)]


def test_test_part_has_none() -> None:
    assert not any(row["copies"] for row in rows(WORLD, "test"))
