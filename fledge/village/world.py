"""Worlds: who lives in the village, how well known they are, and the lasting facts about each of them."""

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any

import yaml

from fledge.errors import DataError
from fledge.village.grammar import Grammar, Table, Value, zipf_weights
from fledge.village.random_stream import Stream, make_key

VERSION = "village-v1"
ATTRIBUTES = ("trade", "home", "pet", "food", "instrument", "colour", "fear", "friend")


@dataclass(frozen=True)
class Size:
    """How much of everything a world has, and how many stories are told of it by default."""

    people: int
    things: int
    places: int
    adjectives: int
    stories: int


SIZES = {
    "hamlet": Size(people=40, things=120, places=24, adjectives=50, stories=4_000),
    "village": Size(people=400, things=180, places=40, adjectives=70, stories=40_000),
    "town": Size(people=4_000, things=1_000, places=100, adjectives=200, stories=400_000),
}


@dataclass(frozen=True, eq=False)
class World:
    """One world; all of it follows from its name and seed."""

    name: str
    seed: int
    people: list[Value]  # best known first
    priors: dict[str, Table]  # attribute -> the table from which each person's value was drawn
    tables: dict[str, Table] = field(repr=False)
    grammar: Grammar = field(repr=False)

    @property
    def size(self) -> Size:
        """Its size class."""
        return SIZES[self.name]

    @property
    def facts_bits(self) -> float:
        """Bits that it takes to write down all lasting facts, given the grammar and the roster."""
        num_values = [prior.total - (attribute == "friend") for attribute, prior in self.priors.items()]
        return len(self.people) * sum(log2(count) for count in num_values)


@cache
def load_data(name: str) -> dict[str, Any]:
    """A data file of this package, such as `words.yaml`."""
    return yaml.safe_load(files("fledge.village").joinpath(name).read_text(encoding="utf-8"))


@cache
def make_world(name: str = "hamlet", seed: int = 0) -> World:
    """The world of that size and seed; the same object each time.

    Raises:
        DataError: there is no such size.
    """
    if name not in SIZES:
        raise DataError(
            f"village: no world '{name}'; there is {', '.join(SIZES)} (and e.g. hamlet-7 for seed 7)"
        )
    size, stream = SIZES[name], Stream(make_key(VERSION, "world", name, seed))
    people = _people(name, size.people, stream)
    priors = {
        attribute: _even(_values(words)) for attribute, words in load_data("words.yaml")["facts"].items()
    }
    priors["friend"] = _even(people)
    for person in people:
        for attribute, prior in priors.items():
            others = [value for value in prior.values if value is not person]
            person.facts[attribute] = stream.pick(others)
    tables = {**_word_tables(size), **priors}
    tables["person"] = Table(people, zipf_weights(len(people), shift=len(people) // 8))
    return World(
        name, seed, people, priors, tables, Grammar(load_data("stories.yaml")["grammar"], tables, priors)
    )


def _people(name: str, count: int, stream: Stream) -> list[Value]:
    words = load_data("words.yaml")
    first_names = [(text, k % 2 == 0) for k, (text,) in enumerate(_entries(words["first_names"]))]
    if name == "hamlet":
        return [_person(text, is_woman) for text, is_woman in stream.sample(first_names, count)]
    surnames = [surname for (surname,) in _entries(words["surnames"])]
    pairs = [(f"{text} {surname}", is_woman) for text, is_woman in first_names for surname in surnames]
    return [_person(text, is_woman) for text, is_woman in stream.sample(pairs, count)]


def _person(name: str, is_woman: bool) -> Value:
    right, wrong = ("she", "her", "her"), ("he", "him", "his")
    if not is_woman:
        right, wrong = wrong, right
    forms = dict(zip(("he", "him", "his"), right, strict=True))
    forms |= dict(zip(("not_he", "not_him", "not_his"), wrong, strict=True))
    forms |= {"He": right[0].capitalize(), "His": right[2].capitalize(), "not_He": wrong[0].capitalize()}
    return Value({"": name, "number": "sg"} | forms)


def _word_tables(size: Size) -> dict[str, Table]:
    """Tables of common words; Zipf weights in the order of the lists, which are cut to the world's size."""
    words = load_data("words.yaml")
    things = [_thing(*entry) for entry in _entries(words["things"])][: size.things]
    subjects = things[: size.things // 2]
    one = [_noun(thing, is_many=False) for thing in subjects]
    several = [_noun(thing, is_many=True) for thing in subjects]
    counts = _values(words["counts"], "digits")
    for count in counts:
        count.number = int(count.forms["digits"])
    return {
        "thing": _zipf(things),
        "one": _zipf(one),
        "several": _zipf(several),
        "noun": _zipf([noun for both in zip(one, several, strict=True) for noun in both]),
        "place": _zipf(_values(words["places"])[: size.places]),
        "adjective": _zipf(_values(words["adjectives"])[: size.adjectives]),
        "deed": _zipf(_values(words["deeds"])),
        "verb": _zipf(_values(words["verbs"], "pl", "sg")),
        "weather": _zipf(_values(words["weather"], "noun", "wear", "does")),
        "mood": _zipf(_values(words["moods"])),
        "manner": _zipf(_values(words["manners"])),
        "daytime": _even(_values(words["daytimes"])),
        "weekday": _even(_values(words["weekdays"])),
        "opposite": _even(_values(words["opposites"], "opposite")),
        "count": _even(counts),
        "few": _even(counts[:4]),
        "many": _even(counts[4:]),
    }


def _entries(words: str) -> list[list[str]]:
    """The entries of a word list, each as its forms."""
    return [entry.split("/") for entry in words.split(", ")]


def _values(words: str, *forms: str) -> list[Value]:
    """A word list as values: the first form of an entry is the plain one, the others are named here."""
    return [
        Value(
            {"": plain, "an": _with_article(plain), "Cap": plain[0].upper() + plain[1:]}
            | dict(zip(forms, others, strict=True))
        )
        for plain, *others in _entries(words)
    ]


def _even(values: list[Value]) -> Table:
    return Table(values, [1] * len(values))


def _zipf(values: list[Value]) -> Table:
    return Table(values, zipf_weights(len(values)))


def _with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" and not text.startswith(("use", "uni")) else "a ") + text


def _thing(singular: str, material: str, plural: str = "") -> Value:
    an, made = _with_article(singular), _with_article(f"{material} {singular}")
    forms = {"": singular, "an": an, "An": an.capitalize(), "many": plural or _plural(singular), "made": made}
    return Value(forms)


def _plural(noun: str) -> str:
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeou" else noun + "s"


def _noun(thing: Value, is_many: bool) -> Value:
    """A thing as subject, one or several, with the words that agree with it and those that don't (not_...)."""
    agreeing = {form: pair.split("/") for form, pair in load_data("words.yaml")["agreement"].items()}
    forms = {form: pair[is_many] for form, pair in agreeing.items()}
    forms |= {f"not_{form}": pair[not is_many] for form, pair in agreeing.items()}
    return Value({"": thing.forms["many" if is_many else ""]} | forms)
