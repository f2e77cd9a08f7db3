"""Everything that a PPO run holds in memory, and how a checkpoint keeps it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fledge import checkpoints, device, processes
from fledge.deepspeed_engine import DeepSpeedEngine, Plan
from fledge.engine import TorchEngine
from rlhf.config import PpoConfig
from rlhf.kl import KLControl
from rlhf.rollout import RewardScale

ADAM_EPSILON = 1e-5  # torch's 1e-8 lets the first updates jump: detail 3 of "The 37 implementation details of PPO"


@dataclass
class Counters:
    """Where a run stands; part of the checkpoint."""

    step: int = 0
    updates: int = 0  # of the policy
    episodes: int = 0
    tokens: int = 0  # written
    elapsed_s: float = 0.0  # over all processes that worked on the run
    generating_s: float = 0.0  # of that
    best_step: int | None = None
    best_reward: float | None = None  # held out
    stopped_early_at: int | None = None  # the KL budget was spent


class Session:
    """Policy and critic with their optimizers, and what else must survive a kill."""

    def __init__(self, settings: PpoConfig, actor: nn.Module, critic: nn.Module) -> None:
        """Put both into engines.

        Args:
            actor, critic: modules of which the weights that have gradients are trained.
        """
        self._settings = settings
        optim = settings.optim
        self.actor = self._engine(actor, optim.learning_rate)
        self.critic = self._engine(critic, optim.critic_learning_rate)
        self.counters = Counters()
        self.kl = KLControl(settings.kl.weight, settings.kl.target, settings.kl.horizon)
        self.scale = RewardScale()

    def _engine(self, model: nn.Module, learning_rate: float) -> TorchEngine | DeepSpeedEngine:
        settings, optim = self._settings, self._settings.optim
        dtype = device.torch_dtype(settings.run.dtype)
        group = {
            "params": [parameter for parameter in model.parameters() if parameter.requires_grad],
            "lr": learning_rate,
            "peak_lr": learning_rate,
        }
        adam = torch.optim.AdamW(
            [group], betas=(0.9, optim.beta2), eps=ADAM_EPSILON, weight_decay=optim.weight_decay, fused=True
        )
        if settings.engine.kind == "torch":
            return TorchEngine(model, adam, optim.clip_norm, settings.run.device, dtype)
        plan = Plan(
            zero=settings.engine.zero or 0,
            sequences=processes.size(),  # `update` counts for itself
            microbatch=1,
            clip_norm=optim.clip_norm,
            device=settings.run.device,
            dtype=dtype,
        )
        return DeepSpeedEngine(model, adam, plan)

    def set_learning_rates(self) -> float:
        """As the schedule has it for the next step; returns the policy's."""
        total, step = self._settings.run.max_steps, self.counters.step
        share = 1 - step / total if self._settings.optim.schedule == "linear" else 1.0
        self.critic.set_learning_rate(share)
        return self.actor.set_learning_rate(share)

    def save(self, checkpoint: Path) -> None:
        """Write all that continuing exactly needs; each process its part. Nothing random is kept: all of it follows
        from seed and step."""
        state: dict[str, Any] = {
            "counters": asdict(self.counters),
            "kl_weight": self.kl.weight,
            "scale": asdict(self.scale),
        }
        for name, engine in (("actor", self.actor), ("critic", self.critic)):
            folder = checkpoint / name
            folder.mkdir(exist_ok=True)
            state[name] = engine.save(folder)
        checkpoints.save_state(checkpoint, state)

    def restore(self, checkpoint: Path) -> None:
        """Take over a checkpoint."""
        state = checkpoints.read_state(checkpoint)
        self.counters = Counters(**state["counters"])
        self.kl.weight, self.scale = state["kl_weight"], RewardScale(**state["scale"])
        for name, engine in (("actor", self.actor), ("critic", self.critic)):
            engine.restore(checkpoint / name, state[name])

    def restore_actor(self, checkpoint: Path) -> None:
        """Take over the policy's weights of a checkpoint, and nothing else."""
        self.actor.restore(checkpoint / "actor", checkpoints.read_state(checkpoint)["actor"])
