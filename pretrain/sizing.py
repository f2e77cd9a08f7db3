"""The shape of a model, and one dial for it: depth sets width, heads, batch and learning rates together."""

from typing import Any

from fledge.models import architecture
from pretrain.config import ModelConfig, TrainConfig

HEAD_WIDTH = 64
VOCABULARY_MULTIPLE = 64  # rows in memory: matrix products are faster on whole tiles


def architecture_of(shape: ModelConfig, vocab_size: int, **special_ids: int | None) -> architecture.ModelConfig:
    """The architecture's own config of a group `model`."""
    given = shape.model_dump(exclude={"architecture"}) | special_ids
    return architecture.find_config(shape.architecture).sized(vocab_size=vocab_size, **given)


def from_depth(config: TrainConfig) -> dict[str, Any]:
    """The settings that `--size depth` stands for, by dotted name.

    Width is 64 a layer, one head each 64 (as nanochat's dial has it). The config's batch and learning rates are taken
    to suit its own width: from there sequences a step grow with width, AdamW's rate falls with width^-1/2, and
    Muon's stays (its updates keep their size in every width). A microbatch stays where a step has as many sequences;
    a step is then whole microbatches.
    """
    depth = config.size
    assert depth is not None
    width = HEAD_WIDTH * depth
    ratio = width / config.model.width
    sequences = max(1, round(config.batch.sequences * ratio))
    microbatch = config.batch.microbatch and min(config.batch.microbatch, sequences)
    return {
        "model.layers": depth,
        "model.width": width,
        "model.heads": depth,
        "model.kv_heads": None,
        "batch.sequences": sequences - sequences % (microbatch or 1),
        "batch.microbatch": microbatch,
        "optim.learning_rate": config.optim.learning_rate * ratio**-0.5,
        # A dial that was turned stays turned: resuming must not turn it again.
        "size": None,
    }
