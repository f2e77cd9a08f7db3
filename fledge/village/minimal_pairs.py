"""Minimal pairs in BLiMP's format: a model should find the good sentence likelier than the bad one."""

from collections.abc import Iterator
from typing import Any

from fledge.village.random_stream import numbered_streams
from fledge.village.world import World, load_data, load_grammar


def rows(world: World, part: str = "train", count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield BLiMP rows, paradigms in turn; 100 pairs of each by default, other pairs in each part."""
    grammar = load_grammar(world, "minimal-pairs.yaml")
    paradigms = list(load_data("minimal-pairs.yaml")["paradigms"].items())
    count = 100 * len(paradigms) if count is None else count
    for number, draws in enumerate(numbered_streams(world.key("minimal-pairs", part), 0, count)):
        name, (field, term) = paradigms[number % len(paradigms)]
        good, bad = grammar.write(name, draws.__next__).split(" <> ")
        yield {
            "sentence_good": good,
            "sentence_bad": bad,
            "field": field,
            "linguistics_term": term,
            "UID": f"village_{name}",
            "simple_LM_method": True,
            **dict.fromkeys(("one_prefix_method", "two_prefix_method", "lexically_identical"), False),
            "pairID": str(number // len(paradigms)),
        }
