"""Guards of a training run: a wrong start, non-finite losses, spikes, too little memory."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fledge.console import warn
from fledge.engine import StepResult
from fledge.errors import RunError, RunFailed, is_out_of_memory
from fledge.models.architecture import ModelConfig
from pretrain.config import GuardConfig

Verdict = Literal["go on", "roll back"]

# A fresh model may start this far from ln V, and what its logits are wide besides.
START_TOLERANCE = 0.5  # nats/token
SMOOTHING = 0.98  # of the running mean of the loss, about the last 50 steps


def check_first_loss(loss: float, config: ModelConfig) -> None:
    """A model with random weights must know nothing: its first loss is about ln V.

    A last state of norm sqrt(width) gives logits of variance init_std^2 width, and the loss half of that more. Where
    the head is the embeddings, the token just read has a logit of up to init_std width: the loss is that much less
    where the text repeats it, else the sum that the softmax divides by is larger.

    Raises:
        RunFailed: it is not, so weights, targets or vocabulary are wrong.
    """
    expected, widest = math.log(config.vocab_size), config.init_std * config.width
    less, more = 0.0, widest * config.init_std / 2
    if config.tie_embeddings:
        less, more = widest, float(np.logaddexp(0, widest - expected))
    if not expected - START_TOLERANCE - less <= loss <= expected + START_TOLERANCE + more:
        raise RunFailed(
            f"step 0: the first loss is {loss:.3f} nats/token, but random weights over {config.vocab_size} tokens give "
            f"ln V = {expected:.3f}; the initial weights or the token shards are wrong"
        )


@dataclass
class LossGuard:
    """Watches the losses of a run; its state is part of the checkpoint."""

    config: GuardConfig
    mean: float | None = None  # running mean of the finite losses
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0

    def judge(self, result: StepResult, step: int) -> Verdict:
        """Count a step and say how to go on; every skip and roll-back is named on stderr.

        Raises:
            RunFailed: roll-backs did not help.
        """
        if not result.is_finite:
            self.skipped += 1
            self.skipped_in_a_row += 1
            warn(f"step {step}: loss {result.loss}, gradient norm {result.gradient_norm}; update skipped")
            if self.skipped_in_a_row <= self.config.max_skips:
                return "go on"
            return self._roll_back(f"step {step}: {self.skipped_in_a_row} non-finite steps in a row")
        self.skipped_in_a_row = 0
        if self.mean is not None and result.loss > self.mean + self.config.spike:
            return self._roll_back(f"step {step}: loss {result.loss:.3f} after a mean of {self.mean:.3f}")
        self.mean = result.loss if self.mean is None else SMOOTHING * self.mean + (1 - SMOOTHING) * result.loss
        return "go on"

    def _roll_back(self, what: str) -> Verdict:
        self.rollbacks += 1
        if self.rollbacks > self.config.max_rollbacks:
            raise RunFailed(
                f"{what}, and {self.config.max_rollbacks} roll-backs did not help; lower the learning rates "
                "(--optim.learning-rate, --optim.muon-learning-rate) or lengthen --schedule.warmup"
            )
        warn(f"{what}; rolling back to the last checkpoint and leaving these batches out")
        return "roll back"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = asdict(self)
        del kept["config"]
        return kept

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state; skips and roll-backs made since then still count."""
        counted = {name: max(getattr(self, name), state[name]) for name in ("skipped", "rollbacks")}
        for name, value in (state | counted).items():
            setattr(self, name, value)


@contextlib.contextmanager
def memory_errors(microbatch: int = 0, sequences: int = 0) -> Iterator[None]:
    """Turn out-of-memory into an error that names the batch size to use, or, without one, another shape."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = next((n for n in range(microbatch // 2, 0, -1) if sequences % n == 0), None)
        advice = (
            f"use --batch.microbatch {smaller}"
            if smaller
            else "use a smaller --model.context, --model.width or --model.layers"
        )
        batch = f" with {microbatch} sequences in a microbatch" if microbatch else ""
        raise RunError(f"out of memory{batch}; {advice}") from None
