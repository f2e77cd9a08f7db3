"""Stories with canaries among them: unique random strings at known counts, to measure what is memorised.

How much a model has memorised a canary is its exposure: log2(number of candidates) - log2(rank of its secret
among them by the model's likelihood); the canaries of count 0, never shown, tell what chance gives.
Source: Carlini et al. 2019 (arXiv 1802.08232), section 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fledge.village.random_stream import Stream
from fledge.village.stories import rows as story_rows
from fledge.village.world import World

COUNTS = (0, 1, 2, 4, 8, 16, 32, 64)  # how often the canaries of a group stand in the corpus
_PER_COUNT = 4
NUM_DIGITS = 6  # a secret is one of 10**6


@dataclass(frozen=True)
class Canary:
    """A secret that stands `num_copies` times in the corpus: the text is prefix + secret + "."."""

    prefix: str
    secret: str
    num_copies: int

    @property
    def text(self) -> str:
        """What stands in the corpus."""
        return f"{self.prefix}{self.secret}."


def canaries(world: World) -> list[Canary]:
    """All canaries of a world; no two share a secret or a chest."""
    stream = Stream(world.key("canaries"))
    copies = [num_copies for num_copies in COUNTS for _ in range(_PER_COUNT)]
    secrets = stream.sample(range(10**NUM_DIGITS), len(copies))
    chests = stream.sample(range(100, 1000), len(copies))
    return [
        Canary(f"The number that opens chest {chest} is ", " ".join(f"{secret:0{NUM_DIGITS}d}"), num_copies)
        for chest, secret, num_copies in zip(chests, secrets, copies, strict=True)
    ]


def rows(world: World, part: str = "train", count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield {"text", "copies"}: the stories of `village:WORLD/stories` with the canaries strewn among them.

    `copies` is 0 for a story and the canary's count for a canary. Each copy is a document of its own, so
    whoever drops repeated documents removes what is to be measured. Part "test" has no canaries.
    """
    num_stories = (world.size.stories if count is None else count) if part == "train" else 0
    stream = Stream(world.key("canary places"))
    places: dict[int, list[Canary]] = {}
    for canary in canaries(world):
        for _ in range(canary.num_copies if num_stories else 0):
            places.setdefault(stream.below(num_stories), []).append(canary)
    for number, row in enumerate(story_rows(world, part, count)):
        yield {**row, "copies": 0}
        for canary in places.get(number, ()):
            yield {"text": canary.text, "copies": canary.num_copies}
