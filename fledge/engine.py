"""One training step on plain PyTorch: forward and backward over microbatches, clip, update."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fledge.models.loss import IGNORED


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured."""

    loss: float  # nats/token, mean over the step's targets
    gradient_norm: float  # before clipping
    is_finite: bool  # False: the weights were left as they were


class TorchEngine:
    """One process, one device.

    Args:
        model: has `loss(ids_BT, targets_BT) -> scalar`, a mean over the targets.
        clip_norm: the largest gradient norm; 0 clips nothing.
        dtype: of the forward and backward pass; weights and optimizer stay as they are (float32).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._clip_norm, self._device, self._dtype = clip_norm, device, dtype
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the forward pass runs."""
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    def set_learning_rate(self, share: float) -> float:
        """Set every group to a share of its peak; returns the last group's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        return float(self.optimizer.param_groups[-1]["lr"])

    def step(self, microbatches: list[tuple[Tensor, Tensor]]) -> StepResult:
        """One optimizer update from the mean loss over all targets of all microbatches.

        Args:
            microbatches: pairs of ids (B, T) and targets (B, T), int64; microbatches weigh by their targets.
        Returns:
            the step's loss; where it or the gradient is not finite, nothing was updated.
        """
        self.model.train()
        counts = [int((targets_BT != IGNORED).sum()) for _, targets_BT in microbatches]
        num_targets = max(1, sum(counts))
        total = torch.zeros((), device=self._device)
        for (ids_BT, targets_BT), count in zip(microbatches, counts, strict=True):
            with self.autocast():
                loss = self.model.loss(ids_BT, targets_BT) * (count / num_targets)  # type: ignore[operator]
            loss.backward()
            total += loss.detach()
        limit = self._clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        result = StepResult(float(total), norm, bool(torch.isfinite(total)) and norm < float("inf"))
        if result.is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result
