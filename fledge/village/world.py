"""Worlds: who lives in the village, how well known they are, and the lasting facts about each of them."""

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any

import yaml

from fledge.errors import DataError
from fledge.village.grammar import Grammar, Table, Value
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

    @property
    def size(self) -> Size:
        """Its size class."""
        return SIZES[self.name]

    @property
    def grammar(self) -> Grammar:
        """The grammar of its stories."""
        return load_grammar(self, "stories.yaml")

    def key(self, purpose: str, *details: int | str) -> int:
        """The key of the random numbers that this world uses for one purpose."""
        return make_key(VERSION, purpose, self.name, self.seed, *details)

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
def load_grammar(world: World, *names: str, column: int = 0) -> Grammar:
    """The rules of some data files together, over the tables of a world."""
    source = "".join(load_data(name)["grammar"] for name in names)
    return Grammar(source, world.tables, world.priors, column)


@cache
def make_world(name: str = "hamlet", seed: int = 0) -> World:
    """The world of that size and seed; the same object each time.

    Raises:
        DataError: there is no such size.
    """
    if name not in SIZES:
        raise DataError(f"village: no world '{name}'; there is {', '.join(SIZES)}")
    size, stream = SIZES[name], Stream(make_key(VERSION, "world", name, seed))
    people = _people(name, size.people, stream)
    priors = {attribute: Table(_values(words)) for attribute, words in load_data("words.yaml")["facts"].items()}
    priors["friend"] = Table(people)
    for person in people:
        for attribute, prior in priors.items():
            person.facts[attribute] = stream.pick([value for value in prior.values if value is not person])
    tables = {**_word_tables(size), **priors}
    tables["person"] = _zipf(people, shift=len(people) // 8)
    return World(name, seed, people, priors, tables)


def _people(name: str, count: int, stream: Stream) -> list[Value]:
    words = load_data("words.yaml")
    names = [(text, k % 2) for k, text in enumerate(words["first_names"].split(", "))]
    if name != "hamlet":
        surnames = words["surnames"].split(", ")
        names = [(f"{text} {surname}", is_man) for text, is_man in names for surname in surnames]
    return [
        Value({"": text, "number": "sg"} | _agreeing("pronouns", is_man))
        for text, is_man in stream.sample(names, count)
    ]


def _word_tables(size: Size) -> dict[str, Table]:
    """Tables of common words; Zipf weights in the order of the lists, which are cut to the world's size."""
    words = load_data("words.yaml")
    things = [_thing(*entry.split("/")) for entry in words["things"].split(", ")][: size.things]
    one = [_subject(thing, is_many=False) for thing in things[: size.things // 2]]
    several = [_subject(thing, is_many=True) for thing in things[: size.things // 2]]
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
        "daytime": Table(_values(words["daytimes"])),
        "weekday": Table(_values(words["weekdays"])),
        "opposite": Table(_values(words["opposites"], "opposite")),
        "count": Table(counts),
        "few": Table(counts[:4]),
        "many": Table(counts[4:]),
    }


def _values(words: str, *forms: str) -> list[Value]:
    """A word list as values: the first form of an entry is the plain one, the others are named here."""
    return [
        Value(
            {"": plain, "an": _with_article(plain), "Cap": plain[0].upper() + plain[1:]}
            | dict(zip(forms, others, strict=True))
        )
        for plain, *others in (entry.split("/") for entry in words.split(", "))
    ]


def _zipf(values: list[Value], shift: int = 2) -> Table:
    """Weights that fall as 1 / (rank + shift): Zipf's law with Mandelbrot's shift, which makes the top flatter."""
    head = 8 * (len(values) + shift)  # so that the last still weighs 8, and rounding down changes little
    return Table(values, [head // (rank + shift) for rank in range(1, len(values) + 1)])


def _with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" and not text.startswith(("use", "uni")) else "a ") + text


def _thing(singular: str, material: str, plural: str = "") -> Value:
    an, made = _with_article(singular), _with_article(f"{material} {singular}")
    many = plural or _plural(singular)
    return Value({"": singular, "an": an, "An": an.capitalize(), "many": many, "made": made})


def _plural(noun: str) -> str:
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeou" else noun + "s"


def _subject(thing: Value, is_many: bool) -> Value:
    """A thing as subject, one or several, with the words that agree with it."""
    return Value({"": thing.forms["many" if is_many else ""]} | _agreeing("agreement", is_many))


def _agreeing(words: str, which: int) -> dict[str, str]:
    """Of each pair of words the one that agrees, and as not_... the one that doesn't."""
    forms: dict[str, str] = {}
    for form, pair in load_data("words.yaml")[words].items():
        both = pair.split("/")
        forms |= {form: both[which], f"not_{form}": both[1 - which]}
    return forms
