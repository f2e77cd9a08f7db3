"""The grammar on worlds so small that every text can be written out."""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice, pairwise, product
from math import exp
from typing import Any

import pytest

from fledge.village.grammar import Grammar, Table, Value
from fledge.village.random_stream import Stream

SOURCE = r"""
story
  3 | {a:person} {w:verb.@a} with {t:thing.an}. {x=a}{fact!} {swap!} The end.
  1 | {b:person} and {a:person} know {y:b.friend}. {x=b}{fact!}{fact!} The end.
fact*
  {x} has {x.pet.an}.
  {x.pet} of {x}!
  {x} likes {y:x.friend}, {y.he} too.
swap
  {n:count} and {m:count} make {n+m}, times {n*m}, less {100-n*m}. {k=a}{k} met {b:person}: {h:a|b} first.
  "{h:a|b} and then {h:a|b}," said {h}.
"""


def value(text: str, count: int = 0, **forms: str) -> Value:
    return Value({"": text, **forms}, count)


def make_tables() -> dict[str, Table]:
    people = [
        value(name, number="sg" if k else "pl", he="he" if k else "she") for k, name in enumerate(["Ada", "Bo", "Cy"])
    ]
    return {
        "person": Table(people, [3, 2, 1]),
        "pet": Table([value("cat", an="a cat"), value("owl", an="an owl")], [1, 2]),
        "thing": Table([value("key", an="a key")], [1]),
        "verb": Table([value("sing", sg="sings", pl="sing"), value("run", sg="runs", pl="run")], [2, 1]),
        "count": Table([value("two", 2), value("three", 3)], [1, 1]),
    }


def make_grammar() -> Grammar:
    tables = make_tables()
    people = tables["person"].values
    priors = {"pet": tables["pet"], "friend": Table(people, [1] * len(people))}
    # `b` must be named for the AMONG slot of the second swap, which the first story template leaves out.
    source = SOURCE.replace('"{h:a|b} and', '{b:person} came. "{h:a|b} and')
    return Grammar(source, tables, priors)


def worlds(grammar: Grammar) -> Iterator[float]:
    """Give each person every possible set of facts in turn; yields the prior probability of the world."""
    people = grammar.tables["person"].values
    choices = []
    for person, attribute in product(people, grammar.priors):
        prior = grammar.priors[attribute]
        total = prior.total_without([person])
        choices.append([(person, attribute, v, w / total) for v, w in prior.weight.items() if v is not person])
    for chosen in product(*choices):
        chance = 1.0
        for person, attribute, fact, p in chosen:
            person.facts[attribute] = fact
            chance *= p
        yield chance


class Replay:
    """Takes the choices of a path, then always the first, and notes the paths not tried."""

    def __init__(self, path: list[int]) -> None:
        self.path, self.depth, self.chance = list(path), 0, 1.0
        self.untried: list[list[int]] = []

    def choose(self, tickets: list[Any], excluded: Collection[Value]) -> Any:
        # By identity: a template is a list, and two equal ones are still two choices.
        counts = Counter(id(ticket) for ticket in tickets)
        options = {id(ticket): ticket for ticket in tickets if not any(ticket is value for value in excluded)}
        keys = list(options)
        if self.depth == len(self.path):
            self.untried += [[*self.path, other] for other in range(1, len(keys))]
            self.path.append(0)
        key = keys[self.path[self.depth]]
        self.depth += 1
        self.chance *= counts[key] / sum(counts[other] for other in keys)
        return options[key]


def enumerate_texts(grammar: Grammar, rule: str = "story") -> Iterator[tuple[str, float]]:
    """Every derivation's text and probability, in the world as it stands."""
    pending: list[list[int]] = [[]]
    while pending:
        replay = Replay(pending.pop())
        yield grammar.expand(rule, replay.choose), replay.chance
        pending += replay.untried


def probability(grammar: Grammar, text: str, is_world_known: bool) -> float:
    """Of a text, by its one derivation."""
    (steps,) = grammar.parse("story", text)
    if is_world_known and any(step.fact and step.fact[0].facts[step.fact[1]] is not step.fact[2] for step in steps):
        return 0.0
    return exp(sum(step.nats for step in steps if not (is_world_known and step.fact)))


def test_in_every_world_each_derivation_has_its_own_text_and_all_sum_to_one() -> None:
    grammar = make_grammar()
    for _ in worlds(grammar):
        texts = list(enumerate_texts(grammar))
        assert len({text for text, _ in texts}) == len(texts) > 200
        assert sum(chance for _, chance in texts) == pytest.approx(1, abs=1e-12)


def test_parsed_probability_is_the_enumerated_one_for_one_who_knows_the_world() -> None:
    grammar = make_grammar()
    for _ in islice(worlds(grammar), 0, None, 9):
        for text, chance in enumerate_texts(grammar):
            assert probability(grammar, text, is_world_known=True) == pytest.approx(chance, rel=1e-12)


def test_grammar_probability_is_the_mean_over_all_worlds() -> None:
    grammar = make_grammar()
    mean: Counter[str] = Counter()
    for prior in worlds(grammar):
        for text, chance in enumerate_texts(grammar):
            mean[text] += prior * chance
    assert sum(mean.values()) == pytest.approx(1, abs=1e-12)
    for text, chance in mean.items():
        assert probability(grammar, text, is_world_known=False) == pytest.approx(chance, rel=1e-12)


def test_writing_draws_each_text_as_often_as_its_probability_says() -> None:
    grammar, stream = make_grammar(), Stream(3)
    next(worlds(grammar))
    expected, count = dict(enumerate_texts(grammar)), 40_000
    seen = Counter(grammar.write("story", stream.__next__) for _ in range(count))
    assert set(seen) <= set(expected)
    chi_square = sum((seen[text] - count * p) ** 2 / (count * p) for text, p in expected.items())
    # Mean len - 1, standard deviation sqrt(2 (len - 1)): within four of it.
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_no_text_is_the_beginning_of_another() -> None:
    grammar = make_grammar()
    next(worlds(grammar))
    texts = sorted(text for text, _ in enumerate_texts(grammar))
    assert not any(longer.startswith(shorter) for shorter, longer in pairwise(texts))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "Ada sing with a key. Ada has a cat. two and three make 5, times 6, less 94. Ada met Bo: Ada first.",
            "no end",
        ),
        ('Bo sing with a key. Bo has a cat. Ada came. "Bo and then Ada," said Ada. The end.', "agreement"),
        (
            "Ada sing with a key. Ada has a cat. two and two make 4, times 4, less 96. Ada met Bo: Ada first. The end.",
            "two",
        ),
        ("Ada and Bo know Cy. Ada likes Bo, he too.Ada has a cat. The end.", "two friends"),
    ],
)
def test_what_the_grammar_never_writes_has_no_derivation(text: str, why: str) -> None:
    assert make_grammar().parse("story", text) == [], why


def test_weights_come_from_the_place_the_star_or_the_stated_column() -> None:
    source = "first\n  a\n  b\n  c\neven*\n  a\n  b\nstated\n  3/0 | a\n  1/5 | b\n"
    weights = [
        {name: rule.weights for name, rule in Grammar(source, {}, {}, column).rules.items()} for column in (0, 1)
    ]
    assert weights[0] == {"first": [30, 20, 15], "even": [1, 1], "stated": [3, 1]}
    assert weights[1]["stated"] == [0, 5]
