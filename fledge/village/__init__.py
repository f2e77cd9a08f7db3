"""The village: a built-in world with known truth.

from fledge.village import floors, make_world, rows
for row in rows("village:hamlet/stories"): ...
floors(make_world("hamlet"), texts).world_bits_per_byte
"""

from fledge.village.floors import FactSpan, Floors, Knowledge, fact_spans, floors, log_prob, log_prob_grammar
from fledge.village.spec import KINDS, PARTS, Spec, is_spec, parse_spec, rows, write
from fledge.village.stories import HELD_OUT_START, stories
from fledge.village.world import ATTRIBUTES, SIZES, VERSION, World, make_world

__all__ = [
    "ATTRIBUTES",
    "HELD_OUT_START",
    "KINDS",
    "PARTS",
    "SIZES",
    "VERSION",
    "FactSpan",
    "Floors",
    "Knowledge",
    "Spec",
    "World",
    "fact_spans",
    "floors",
    "is_spec",
    "log_prob",
    "log_prob_grammar",
    "make_world",
    "parse_spec",
    "rows",
    "stories",
    "write",
]
