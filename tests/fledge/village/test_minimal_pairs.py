"""Minimal pairs: the format, and that the village's own truth prefers the good sentence."""

from collections import Counter

from fledge.village.minimal_pairs import rows
from fledge.village.world import load_data, make_world

WORLD = make_world("hamlet")
ROWS = list(rows(WORLD))
BLIMP_FIELDS = {
    *("sentence_good", "sentence_bad", "field", "linguistics_term", "UID", "pairID"),
    *("simple_LM_method", "one_prefix_method", "two_prefix_method", "lexically_identical"),
}


def test_rows_have_the_fields_of_blimp_and_paradigms_are_equally_many() -> None:
    assert {frozenset(row) for row in ROWS} == {frozenset(BLIMP_FIELDS)}
    assert set(Counter(row["UID"] for row in ROWS).values()) == {100}
    assert len({row["UID"] for row in ROWS}) == len(load_data("minimal-pairs.yaml")["paradigms"])


def test_the_two_sentences_differ_in_little() -> None:
    for row in ROWS:
        good, bad = row["sentence_good"].split(), row["sentence_bad"].split()
        assert good != bad
        assert len(good) - len(bad) in (-1, 0, 1), row
        if len(good) == len(bad):
            assert sum(a != b for a, b in zip(good, bad, strict=True)) <= 3, row


def test_bad_sentence_of_a_fact_is_false_in_this_world() -> None:
    people = {str(person): person for person in WORLD.people}
    for row in ROWS:
        if row["UID"] == "village_fact":
            facts = people[row["sentence_good"].split()[0]].facts.values()
            assert any(str(fact) in row["sentence_good"] for fact in facts)


def test_bad_pronoun_is_the_other_gender_and_bad_verb_the_other_number() -> None:
    other = {"his": "her", "her": "his", "he": "she", "she": "he", "He": "She", "She": "He"}
    other |= {"was": "were", "were": "was", "is": "are", "are": "is", "it": "they", "they": "it"}
    for row in ROWS:
        if "agreement" in row["UID"] or "pronoun" in row["UID"]:
            good, bad = row["sentence_good"].split(), row["sentence_bad"].split()
            changed = [(a, b) for a, b in zip(good, bad, strict=True) if a != b]
            assert changed
            assert all(other.get(a, b) == b for a, b in changed), row
