"""Settings of `fledge finetune`; values and their reasons are in configs/finetune/."""

from typing import Literal

from pydantic import Field, model_validator

from fledge.config import Config


class BatchConfig(Config):
    """How many examples go into one optimizer step, and how often all are read."""

    examples: int = Field(8, ge=1, description="in an optimizer step", json_schema_extra={"unit": "examples"})
    microbatch: int | None = Field(
        None,
        ge=1,
        description="in one forward and backward; must divide `examples`; none: all",
        json_schema_extra={"unit": "examples"},
    )
    epochs: float | None = Field(
        None, gt=0, description="passes over the examples; none, or where it is fewer: run.max_steps"
    )

    @model_validator(mode="after")
    def _divides(self) -> "BatchConfig":
        if self.microbatch and self.examples % self.microbatch:
            raise ValueError(f"microbatch {self.microbatch} does not divide examples {self.examples}")
        return self


class OptimConfig(Config):
    """AdamW and its learning rate."""

    learning_rate: float = Field(1e-3, gt=0, description="the peak")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate falls after the peak"
    )
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps until the peak")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, scaled by the learning rate")
    beta2: float = Field(0.95, gt=0, lt=1, description="decay of the second moment")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: not clipped")


class ValidationConfig(Config):
    """The held-out part and the checks on it."""

    share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="of the rows to hold out, by a hash of the prompt or text",
        json_schema_extra={"unit": "ratio"},
    )
    every: int = Field(50, ge=1, description="between checks", json_schema_extra={"unit": "steps"})
    patience: int = Field(
        0, ge=0, description="checks without a better one before training stops; 0: never stops early"
    )


class LoraConfig(Config):
    """Low-rank adapters in place of training all weights."""

    rank: int = Field(0, ge=0, description="of the adapters; 0: all weights are trained")
    alpha: float | None = Field(None, gt=0, description="scale of the adapters; none: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapters' inputs dropped")
    targets: list[str] = Field(
        ["all-linear"], description="names of the layers that get adapters; all-linear: each but the head"
    )
