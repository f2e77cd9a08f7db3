"""Both floors against enumeration, sampling and other compressors."""

from fledge.village.floors import floors
from fledge.village.stories import stories
from fledge.village.world import make_world


def test_every_story_has_exactly_one_derivation() -> None:
    world = make_world("hamlet")
    for text in stories(world, 0, 500):
        assert len(world.grammar.parse("story", text)) == 1, text


def test_knowing_the_world_saves_bits() -> None:
    both = floors(make_world("hamlet"), stories(make_world("hamlet"), 0, 100))
    assert both.world_bits_per_byte < both.grammar_bits_per_byte
