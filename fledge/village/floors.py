"""Exact probabilities of stories, the two floors in bits per byte, and what a model knows between them.

World floor: the reader knows the grammar, the roster (names and fame) and every lasting fact.
Grammar floor: the reader knows grammar and roster, but no fact, and keeps nothing from one story to the next.
On average no model that knows only the grammar does better than the latter, and none at all than the former.
A text has one derivation; its probability is the product of that derivation's choices, where the first telling
of a fact costs -log of its prior and later ones nothing: facts are independent and choices don't depend on facts
still untold, so this sums them out exactly. End-of-text is left out: it is certain after "The end.".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, log

from fledge.errors import DataError
from fledge.village.stories import parse_story
from fledge.village.world import World


def log_prob(world: World, text: str) -> float:
    """Log-probability of a story (nats) for one who knows this world; -inf for what it never tells."""
    steps = parse_story(world, text)
    return -inf if steps is None else sum(step.known_nats for step in steps)


def log_prob_grammar(world: World, text: str) -> float:
    """Log-probability of a story (nats) with this world's roster and all facts summed out."""
    steps = parse_story(world, text)
    return -inf if steps is None else sum(step.nats for step in steps)


@dataclass(frozen=True)
class FactSpan:
    """Where a text tells a fact for the first time, and what it costs one who does not know it."""

    start: int  # characters; the texts are ASCII, so bytes as well
    end: int
    person: str
    attribute: str
    value: str
    prior_bits: float


def fact_spans(world: World, text: str) -> list[FactSpan]:
    """The lasting facts that a story tells, each where it comes first.

    A model's surprisal over such a span, against `prior_bits`, says whether it knows that fact; unlike the
    loss of the whole text this does not mix with how well it knows the grammar.
    """
    spans = []
    for step in parse_story(world, text) or ():
        if step.fact and step.is_news:
            person, attribute, value = step.fact
            bits = -step.nats / log(2)
            spans.append(FactSpan(step.start, step.end, str(person), attribute, str(value), bits))
    return spans


@dataclass(frozen=True)
class Floors:
    """The two floors of a set of stories (bits per byte), and its size."""

    grammar_bits_per_byte: float
    world_bits_per_byte: float
    num_bytes: int

    @property
    def knowledge_bits(self) -> float:
        """What knowing the world saves on these stories, in bits."""
        return (self.grammar_bits_per_byte - self.world_bits_per_byte) * self.num_bytes

    def known_bits(self, model_bits_per_byte: float) -> float:
        """What a model saves against the grammar floor, in bits; negative while grammar costs it even more."""
        return (self.grammar_bits_per_byte - model_bits_per_byte) * self.num_bytes

    def known_share(self, model_bits_per_byte: float) -> float:
        """The same as a share of `knowledge_bits`: 0 at the grammar floor, 1 at the world floor."""
        return self.known_bits(model_bits_per_byte) / self.knowledge_bits


def floors(world: World, texts: Iterable[str]) -> Floors:
    """Both floors of stories of this world.

    Raises:
        DataError: a text is no story of this world, or there is none.
    """
    grammar, known, num_bytes = 0.0, 0.0, 0
    for text in texts:
        steps = parse_story(world, text) or ()
        known_nats = sum(step.known_nats for step in steps)
        if not steps or known_nats == -inf:
            raise DataError(
                f"village: not a story of {world.name}-{world.seed}: {text[:80]!r}; floors need whole stories"
            )
        grammar -= sum(step.nats for step in steps)
        known -= known_nats
        num_bytes += len(text.encode())
    if not num_bytes:
        raise DataError("village: no stories to take the floors of")
    return Floors(grammar / log(2) / num_bytes, known / log(2) / num_bytes, num_bytes)
