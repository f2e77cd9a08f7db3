"""Stories of a world, by number: story i depends on nothing but the world, the seed and i."""

from collections.abc import Iterator
from typing import Any

from fledge.village.grammar import Step
from fledge.village.random_stream import numbered_streams
from fledge.village.world import World

HELD_OUT_START = 1 << 40  # stories from here on are never part of a training corpus


def stories(world: World, start: int = 0, count: int | None = None, seed: int = 0) -> Iterator[str]:
    """Yield the stories numbered start, start + 1, ...; each ends in "The end." and holds it nowhere else.

    Args:
        count: how many; None for as many as the world's size has by default.
        seed: another seed tells other stories of the same world.
    """
    write, count = world.grammar.write, world.size.stories if count is None else count
    for draws in numbered_streams(world.key("stories", seed), start, count):
        yield write("story", draws.__next__)


def rows(world: World, part: str = "train", count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield {"text"}: stories for pretraining, or with part "test" others that are never in training."""
    start, default = (0, world.size.stories) if part == "train" else (HELD_OUT_START, world.size.stories // 20)
    for text in stories(world, start, default if count is None else count):
        yield {"text": text}


def parse_story(world: World, text: str) -> tuple[Step, ...] | None:
    """The one derivation of a story, or None where the text is no story of this grammar and roster."""
    derivations = world.grammar.parse("story", text)
    assert len(derivations) < 2, f"ambiguous story: {text}"
    return derivations[0] if derivations else None
