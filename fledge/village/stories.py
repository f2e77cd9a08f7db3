"""Stories of a world, by number: story i depends on nothing but the world, the seed and i."""

from collections.abc import Iterator
from typing import Any

from fledge.village.grammar import Step
from fledge.village.random_stream import make_key, numbered_streams
from fledge.village.world import VERSION, World

HELD_OUT_START = 1 << 40  # stories from here on are never part of a training corpus


def stories(world: World, start: int = 0, count: int | None = None, seed: int = 0) -> Iterator[str]:
    """Yield the stories numbered start, start + 1, ...; each ends in "The end." and holds it nowhere else.

    Args:
        count: how many; None for as many as the world's size has by default.
        seed: another seed tells other stories of the same world.
    """
    key = make_key(VERSION, "stories", world.name, world.seed, seed)
    write = world.grammar.write
    for draws in numbered_streams(key, start, world.size.stories if count is None else count):
        yield write("story", draws.__next__)


def rows(world: World, part: str = "train", count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield {"text"}: stories for pretraining, or with part "test" others that are never in training."""
    if part == "test":
        texts = stories(world, HELD_OUT_START, world.size.stories // 20 if count is None else count)
    else:
        texts = stories(world, 0, count)
    for text in texts:
        yield {"text": text}


def parse_story(world: World, text: str) -> tuple[Step, ...] | None:
    """The one derivation of a story, or None where the text is no story of this grammar and roster."""
    derivations = world.grammar.parse("story", text)
    assert len(derivations) < 2, f"ambiguous story: {text}"
    return derivations[0] if derivations else None
