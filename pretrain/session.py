"""Everything that a pretraining run holds in memory, and how a checkpoint keeps it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge import checkpoints, device
from fledge.engine import StepResult, TorchEngine
from fledge.models import architecture
from fledge.models.architecture import LanguageModel
from pretrain import optimizer
from pretrain.batches import Batches, TokenStream
from pretrain.config import TrainConfig
from pretrain.guards import LossGuard, memory_errors
from pretrain.schedule import learning_rate_share

STATE = "state.pt"


@dataclass
class Counters:
    """Where a run stands; part of the checkpoint."""

    step: int = 0  # optimizer steps made
    batch_index: int = 0  # batches consumed; ahead of `step` after a roll-back
    elapsed_s: float = 0.0  # of the loop, over all processes that worked on the run
    best_step: int | None = None
    best_loss: float | None = None  # validation, nats/token
    recent_losses: list[float] = field(default_factory=list)  # since the last line of metrics.jsonl


class Session:
    """Model, optimizer, data order and counters of one run."""

    def __init__(self, config: TrainConfig, model: LanguageModel, stream: TokenStream) -> None:
        self.config = config
        self.model = model.to(config.run.device)
        dtype = device.torch_dtype(config.run.dtype)
        self.engine = TorchEngine(
            self.model,
            optimizer.build(self.model, config.optim, dtype),
            config.optim.clip_norm,
            config.run.device,
            dtype,
        )
        self.batches = Batches(stream, config.model.context, config.batch.sequences, config.run.seed)
        self.guard = LossGuard(config.guard)
        self.counters = Counters()
        self.learning_rate = 0.0
        self.rolled_back_to: int | None = None  # a step after which no checkpoint was written yet
        self._microbatch = config.batch.microbatch or config.batch.sequences
        torch.manual_seed(config.run.seed)  # dropout

    def train_step(self) -> StepResult:
        """Make the next optimizer step."""
        counters = self.counters
        share = learning_rate_share(self.config.schedule, counters.step, self.config.run.max_steps)
        self.learning_rate = self.engine.set_learning_rate(share)
        with memory_errors(self._microbatch, self.config.batch.sequences):
            result = self.engine.step(self._microbatches(counters.batch_index))
        counters.step += 1
        counters.batch_index += 1
        counters.recent_losses.append(result.loss)
        return result

    def _microbatches(self, index: int) -> list[tuple[Tensor, Tensor]]:
        ids_BT, targets_BT = (x.to(self.config.run.device) for x in self.batches.batch(index))
        return list(zip(ids_BT.split(self._microbatch), targets_BT.split(self._microbatch), strict=True))

    def save(self, checkpoint: Path) -> None:
        """Write all that continuing exactly needs."""
        state = {
            "model": self.model.state_dict(),
            "config_json": architecture_json(self.model),
            "optimizer": self.engine.optimizer.state_dict(),
            "guard": self.guard.state(),
            "counters": vars(self.counters),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.config.run.device == "cuda" else None,
        }
        with (checkpoint / STATE).open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # torch hides that the disk is full
                    raise error.__context__ from None
                raise

    def restore(self, checkpoint: Path) -> None:
        """Take over a checkpoint."""
        state = read_state(checkpoint)
        self.model.load_state_dict(state["model"])
        self.engine.optimizer.load_state_dict(state["optimizer"])
        self.guard.restore(state["guard"])
        self.counters = Counters(**state["counters"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.config.run.device == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])

    def roll_back(self, checkpoint: Path) -> None:
        """Take over a checkpoint but leave out the batches read since, and the time stays spent."""
        batch_index, elapsed_s = self.counters.batch_index, self.counters.elapsed_s
        self.restore(checkpoint)
        self.rolled_back_to = checkpoints.step_of(checkpoint)
        self.counters.batch_index, self.counters.elapsed_s = batch_index, elapsed_s


def architecture_json(model: LanguageModel) -> dict[str, Any]:
    """The content of the model's config.json."""
    return {"model_type": model.config.model_type} | model.config.to_hf()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state in a checkpoint folder, on the CPU."""
    return dict(torch.load(checkpoint / STATE, map_location="cpu", weights_only=True))


def model_of_checkpoint(checkpoint: Path) -> LanguageModel:
    """An untrained model of the shape that a checkpoint's weights have."""
    state = read_state(checkpoint)
    content, rows = state["config_json"], len(state["model"]["token_embed.weight"])
    shape = architecture.find_config(content["model_type"]).from_hf(content)
    return architecture.build(shape, seed=None, pad_vocab_to=rows)
