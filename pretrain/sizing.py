"""One dial for the size of a model: depth sets width, heads, batch and learning rates together."""

from typing import Any

from pretrain.config import TrainConfig

HEAD_WIDTH = 64
REFERENCE_WIDTH = 256  # where the configs' learning rates were chosen
REFERENCE_TOKENS = 4096  # and their tokens a step


def from_depth(config: TrainConfig) -> dict[str, Any]:
    """The settings that `--size depth` stands for, by dotted name.

    Width is 64 a layer, one head each 64 (as nanochat's dial has it). Learning rates of AdamW fall with
    width^-1/2, Muon's stays (its updates keep their size in every width); tokens a step grow with width.
    """
    depth = config.size
    assert depth is not None
    width = HEAD_WIDTH * depth
    tokens = REFERENCE_TOKENS * max(1.0, width / REFERENCE_WIDTH)
    return {
        "model.layers": depth,
        "model.width": width,
        "model.heads": depth,
        "model.kv_heads": None,
        "batch.sequences": max(1, round(tokens / config.model.context)),
        "batch.microbatch": None,
        "optim.learning_rate": config.optim.learning_rate * (REFERENCE_WIDTH / width) ** 0.5,
        # A dial that was turned stays turned: resuming must not turn it again.
        "size": None,
    }
