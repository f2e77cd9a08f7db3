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

ATTRIBUTES = ("trade", "home", "pet", "food", "instrument", "colour", "fear", "friend")


@cache
def load_data(name: str) -> dict[str, Any]:
    """A data file of this package, such as `words.yaml`."""
    return yaml.safe_load(files("fledge.village").joinpath(name).read_text(encoding="utf-8"))


@dataclass(frozen=True, eq=False)
class World:
    """One world; all of it follows from its name and seed."""

    name: str
    seed: int
    people: list[Value]  # best known first
    priors: dict[str, Table]  # attribute -> the table from which each person's value was drawn
    tables: dict[str, Table]
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
def make_world(name: str = "hamlet", seed: int = 0) -> World:
    """The world of that size and seed; the same object each time.

    Raises:
        DataError: there is no such size.
    """
    if name not in SIZES:
        raise DataError(
            f"village: no world '{name}'; there are {', '.join(SIZES)} (and e.g. hamlet-7 for seed 7)"
        )
    size, stream = SIZES[name], Stream(make_key(VERSION, "world", name, seed))
    people = _people(name, size.people, stream)
    words = load_data("words.yaml")
    priors = {
        name: _even([_phrase(*entry) for entry in _entries(values)])
        for name, values in words["facts"].items()
    }
    priors["friend"] = _even(people)
    for person in people:
        for attribute, prior in priors.items():
            others = [value for value in prior.values if value is not person]
            person.facts[attribute] = stream.pick(others)
    tables = _word_tables(size) | priors
    tables["person"] = Table(people, zipf_weights(len(people), head=max(1440, 4 * len(people))))
    return World(
        name, seed, people, priors, tables, Grammar(load_data("stories.yaml")["grammar"], tables, priors)
    )


def _people(name: str, count: int, stream: Stream) -> list[Value]:
    words = load_data("words.yaml")
    first_names = [(text, k % 2 == 0) for k, (text,) in enumerate(_entries(words["first_names"]))]
    if name == "hamlet":
        return [_person(text, is_woman) for text, is_woman in stream.sample(first_names, count)]
    pairs = [
        (f"{text} {surname}", is_woman)
        for text, is_woman in first_names
        for (surname,) in _entries(words["surnames"])
    ]
    return [_person(text, is_woman) for text, is_woman in stream.sample(pairs, count)]


def _person(name: str, is_woman: bool) -> Value:
    pronouns, others = ("he", "him", "his"), ("she", "her", "her")
    if is_woman:
        pronouns, others = others, pronouns
    forms = dict(zip(("he", "him", "his"), pronouns, strict=True))
    forms |= dict(zip(("not_he", "not_him", "not_his"), others, strict=True))
    capitals = {"He": "he", "His": "his", "not_He": "not_he"}
    return Value(
        {"": name, "number": "sg"} | forms | {form: forms[of].capitalize() for form, of in capitals.items()}
    )


def _word_tables(size: Size) -> dict[str, Table]:
    """Tables of common words; Zipf weights in the order of the lists, which are cut to the world's size."""
    words = load_data("words.yaml")
    things = [_thing(*entry) for entry in _entries(words["things"])][: size.things]
    subjects = things[: size.things // 2]
    one = [_noun(thing, is_many=False) for thing in subjects]
    several = [_noun(thing, is_many=True) for thing in subjects]
    opposites = _entries(words["opposites"])
    counts = [_count(word, k) for k, (word,) in enumerate(_entries(words["counts"]), start=2)]
    return {
        "thing": _zipf(things),
        "noun": _zipf([noun for both in zip(one, several, strict=True) for noun in both]),
        "one": _zipf(one),
        "several": _zipf(several),
        "place": _zipf([_phrase(*entry) for entry in _entries(words["places"])][: size.places]),
        "adjective": _zipf([_phrase(*entry) for entry in _entries(words["adjectives"])][: size.adjectives]),
        "verb": _zipf([_verb(*entry) for entry in _entries(words["verbs"])]),
        "weather": _zipf([_weather(*entry) for entry in _entries(words["weather"])]),
        "daytime": _even([_phrase(*entry) for entry in _entries(words["daytimes"])]),
        "weekday": _even([_phrase(*entry) for entry in _entries(words["weekdays"])]),
        "deed": _zipf([_phrase(*entry) for entry in _entries(words["deeds"])]),
        "mood": _zipf([_phrase(*entry) for entry in _entries(words["moods"])]),
        "manner": _zipf([_phrase(*entry) for entry in _entries(words["manners"])]),
        "opposite": _even([_opposite(*pair) for pair in opposites + [pair[::-1] for pair in opposites]]),
        "count": _even(counts),
        "few": _even(counts[:4]),
        "many": _even(counts[4:]),
    }


def _entries(text: str) -> list[list[str]]:
    """The entries of a word list, each as its forms."""
    return [entry.split("/") for entry in text.split(", ")]


def _even(values: list[Value]) -> Table:
    return Table(values, [1] * len(values))


def _zipf(values: list[Value]) -> Table:
    return Table(values, zipf_weights(len(values)))


def _with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" and not text.startswith(("use", "uni")) else "a ") + text


def _phrase(text: str) -> Value:
    return Value({"": text, "an": _with_article(text), "Cap": text[0].upper() + text[1:]})


def _thing(singular: str, material: str, plural: str = "") -> Value:
    an, made = _with_article(singular), f"{material} {singular}"
    forms = {"": singular, "an": an, "An": an.capitalize(), "many": plural or _plural(singular)}
    return Value(forms | {"made": _with_article(made), "made_": made})


def _plural(noun: str) -> str:
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeou" else noun + "s"


_AGREEING = {  # form: for one thing, for several
    "is": ("is", "are"),
    "Is": ("Is", "Are"),
    "was": ("was", "were"),
    "has": ("has", "have"),
    "they": ("it", "they"),
    "They": ("It", "They"),
    "them": ("it", "them"),
    "number": ("sg", "pl"),
}


def _noun(thing: Value, is_many: bool) -> Value:
    """A thing as subject, one or several, with the words that agree with it and those that don't (not_...)."""
    forms = {form: pair[is_many] for form, pair in _AGREEING.items()}
    forms |= {f"not_{form}": pair[not is_many] for form, pair in _AGREEING.items()}
    return Value({"": thing.forms["many" if is_many else ""]} | forms)


def _verb(plural: str, singular: str) -> Value:
    return Value({"": plural, "pl": plural, "sg": singular})


def _weather(adjective: str, noun: str, wear: str, does: str) -> Value:
    return Value({"": adjective, "an": _with_article(adjective), "noun": noun, "wear": wear, "does": does})


def _opposite(word: str, opposite: str) -> Value:
    return Value({"": word, "opposite": opposite})


def _count(word: str, number: int) -> Value:
    return Value({"": word, "Cap": word.capitalize(), "digits": str(number)}, number)
