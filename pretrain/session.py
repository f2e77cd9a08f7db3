"""Everything that a pretraining run holds in memory, and how a checkpoint keeps it."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fledge import checkpoints, device, processes
from fledge.deepspeed_engine import DeepSpeedEngine, Plan
from fledge.engine import StepResult, TorchEngine, recompute_blocks
from fledge.models import architecture
from fledge.models.architecture import LanguageModel
from pretrain import optimizer
from pretrain.batches import Batches, ReadAhead
from pretrain.config import TrainConfig
from pretrain.guards import LossGuard, memory_errors
from pretrain.schedule import learning_rate_share
from tokenizer.shards import TokenStream


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
        # Counted here: at ZeRO 3 no process keeps all weights.
        self.num_parameters = model.num_parameters()
        self.flops_per_token = model.flops_per_token(config.model.context)
        self.model = model.to(config.run.device)
        self._microbatch = config.batch.microbatch or config.batch.sequences // processes.size()
        if config.engine.recompute:
            recompute_blocks(self.model)
        self.engine = self._engine()
        if config.compile:
            self.engine.compile()
        self.batches = Batches(stream, config.model.context, config.batch.sequences, config.run.seed)
        self._ahead = ReadAhead(self.batches, processes.rank(), processes.size())
        self.guard = LossGuard(config.guard)
        self.counters = Counters()
        self.learning_rate = 0.0
        self.rolled_back_to: int | None = None  # a step after which no checkpoint was written yet
        self._is_first_step = True
        torch.manual_seed(config.run.seed + processes.rank())  # dropout

    def _engine(self) -> TorchEngine | DeepSpeedEngine:
        config, dtype = self.config, device.torch_dtype(self.config.run.dtype)
        if config.engine.kind == "torch":
            ours = optimizer.build(self.model, config.optim, dtype)
            return TorchEngine(self.model, ours, config.optim.clip_norm, config.run.device, dtype)
        plan = Plan(
            zero=config.engine.zero or 0,
            sequences=config.batch.sequences,
            microbatch=self._microbatch,
            clip_norm=config.optim.clip_norm,
            device=config.run.device,
            dtype=dtype,
            bf16_weights=config.engine.bf16 == "weights" and dtype == torch.bfloat16,
        )
        is_theirs = config.optim.optimizer == "muon" and plan.zero > 0
        make = optimizer.deepspeeds_muon if is_theirs else optimizer.build
        return DeepSpeedEngine(self.model, make(self.model, config.optim, dtype), plan)

    def train_step(self) -> StepResult:
        """Make the next optimizer step."""
        counters = self.counters
        share = learning_rate_share(self.config.schedule, counters.step, self.config.run.max_steps)
        self.learning_rate = self.engine.set_learning_rate(share)
        sequences = self.config.batch.sequences // processes.size()
        with memory_errors(self._microbatch, sequences), self._expecting_progress():
            result = self.engine.step(self._microbatches(counters.batch_index))
        counters.step += 1
        counters.batch_index += 1
        counters.recent_losses.append(result.loss)
        return result

    def _expecting_progress(self) -> contextlib.AbstractContextManager[None]:
        compiles = self.config.compile and self._is_first_step
        self._is_first_step = False
        return contextlib.nullcontext() if compiles else processes.lockstep()

    def _microbatches(self, index: int) -> list[tuple[Tensor, Tensor]]:
        if self.config.run.device == "cuda":
            ids_BT, targets_BT = self._ahead.batch(index, "cuda")
        else:  # a thread of its own would take time from the training on a CPU
            rows = self.batches.batch(index, processes.rank(), processes.size())
            ids_BT, targets_BT = (x.to(self.config.run.device) for x in rows)
        return list(zip(ids_BT.split(self._microbatch), targets_BT.split(self._microbatch), strict=True))

    def save(self, checkpoint: Path) -> None:
        """Write all that continuing exactly needs; each process its part."""
        state = {
            **self.engine.save(checkpoint),
            "config_json": {"model_type": self.model.config.model_type} | self.model.config.to_hf(),
            "guard": self.guard.state(),
            "counters": vars(self.counters),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.config.run.device == "cuda" else None,
        }
        checkpoints.save_state(checkpoint, state)

    def restore(self, checkpoint: Path) -> None:
        """Take over a checkpoint."""
        state = checkpoints.read_state(checkpoint)
        self.engine.restore(checkpoint, state)
        self.guard.restore(state["guard"])
        self.counters = Counters(**state["counters"])
        if processes.rank() < state.get("processes", 1):  # one that has come new draws by its own seed
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None and self.config.run.device == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"])

    def roll_back(self, checkpoint: Path) -> None:
        """Take over a checkpoint but leave out the batches read since, and the time stays spent."""
        batch_index, elapsed_s = self.counters.batch_index, self.counters.elapsed_s
        self.restore(checkpoint)
        self.rolled_back_to = checkpoints.step_of(checkpoint)
        self.counters.batch_index, self.counters.elapsed_s = batch_index, elapsed_s


def model_of_checkpoint(checkpoint: Path) -> LanguageModel:
    """An untrained model of the shape that a checkpoint's weights have."""
    state = checkpoints.read_state(checkpoint)
    content = state["config_json"]
    rows = len(state["model"]["token_embed.weight"]) if "model" in state else state["vocabulary_rows"]
    shape = architecture.find_config(content["model_type"]).from_hf(content)
    return architecture.build(shape, seed=None, pad_vocab_to=rows)
