"""Minimal pairs in BLiMP's format: a model should find the good sentence likelier than the bad one."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from fledge.village.grammar import Grammar
from fledge.village.random_stream import make_key, numbered_streams
from fledge.village.world import VERSION, World, load_data


def rows(world: World, part: str = "train", count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield BLiMP rows, paradigms in turn; 100 pairs of each by default, other pairs in each part."""
    data = load_data("minimal-pairs.yaml")
    paradigms = list(data["paradigms"].items())
    key = make_key(VERSION, "minimal-pairs", world.name, world.seed, part)
    for number, draws in enumerate(
        numbered_streams(key, 0, 100 * len(paradigms) if count is None else count)
    ):
        name, (field, term) = paradigms[number % len(paradigms)]
        good, bad = _grammar(world).write(name, draws.__next__).split(" <> ")
        yield {
            "sentence_good": good,
            "sentence_bad": bad,
            "field": field,
            "linguistics_term": term,
            "UID": f"village_{name}",
            "simple_LM_method": True,
            "one_prefix_method": False,
            "two_prefix_method": False,
            "lexically_identical": False,
            "pairID": str(number // len(paradigms)),
        }


@cache
def _grammar(world: World) -> Grammar:
    return Grammar(load_data("minimal-pairs.yaml")["grammar"], world.tables, world.priors)
