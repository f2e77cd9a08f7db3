"""The known floors of village stories, for the validation split of token shards."""

from collections.abc import Iterator

import numpy as np

from fledge.console import warn
from fledge.errors import DataError
from fledge.village import spec
from fledge.village.floors import floors
from pretrain.training_data import TrainingData


def village_floors(data: TrainingData) -> dict[str, float]:
    """`floor_grammar_bits_per_byte` and `floor_world_bits_per_byte` of all of the validation text.

    Empty where the shards are not whole stories of one village.
    """
    sources = [str(source) for source in data.facts.get("sources", [])]
    if not sources or not all(spec.is_spec(source) for source in sources):
        return {}
    specs = [spec.parse_spec(source) for source in sources]
    if len({(s.world, s.seed) for s in specs}) > 1 or any(s.kind != "stories" for s in specs):
        return {}
    try:
        found = floors(specs[0].make_world(), documents(data))
    except DataError as error:  # prepared by another version of the village
        warn(f"no floors for {data.path}: {error}")
        return {}
    return {
        "floor_grammar_bits_per_byte": found.grammar_bits_per_byte,
        "floor_world_bits_per_byte": found.world_bits_per_byte,
    }


def documents(data: TrainingData) -> Iterator[str]:
    """The documents of the validation split, as text."""
    end = data.tokenizer.end_of_text_id
    unfinished: list[np.ndarray] = []
    for block in data.validation.blocks():
        *ended, rest = np.split(block, np.flatnonzero(block == end))
        for piece in ended:
            ids = np.concatenate([*unfinished, piece])
            unfinished = []
            if (ids != end).any():
                yield data.tokenizer.decode_bytes(ids[ids != end].tolist()).decode("utf-8", "replace")
        unfinished.append(rest)
