"""One training step on plain PyTorch: forward and backward over microbatches, clip, update.

`fledge.deepspeed_engine` has the same methods.
"""

import contextlib
import ctypes
import functools
import gc
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from fledge.errors import ConfigError
from fledge.models.loss import IGNORED, compile_loss

LARGEST_KEPT = 256 << 20  # bytes: a block of GPT-2's embeddings; what is larger goes back to the system when freed


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured."""

    loss: float  # nats/token, mean over the step's targets
    gradient_norm: float  # before clipping
    is_finite: bool  # False: the weights were left as they were


class TorchEngine:
    """One process, one device.

    Args:
        model: called with ids_BT and targets_BT it gives a scalar, the mean loss over the targets.
        clip_norm: the largest gradient norm; 0 clips nothing.
        dtype: of the forward and backward pass; weights and optimizer stay as they are (float32).
    """

    def __init__(
        self, model: Any, optimizer: torch.optim.Optimizer, clip_norm: float, device: str, dtype: torch.dtype
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._clip_norm, self._device, self._dtype = clip_norm, device, dtype
        self._parameters = list(model.parameters())
        self._is_compiled = False
        if device == "cpu":
            keep_freed_memory()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """The context of a forward pass that trains nothing: eager, in the training's number format."""
        with self._eager(), self._autocast():
            yield

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[Any]:
        """The model with all of its weights: to write text with, and to save."""
        with self._eager():
            yield self.model

    def _eager(self) -> contextlib.AbstractContextManager[Any]:
        # Other shapes than the training's would be compiled anew.
        return torch.compiler.set_stance("force_eager") if self._is_compiled else contextlib.nullcontext()

    def compile(self) -> None:
        """Compile the model's blocks in place; names of weights stay."""
        require_compiler()
        for block in self.model.blocks:
            block.compile()
        if self._device == "cuda":
            compile_loss()
        self._is_compiled = True

    def save(self, checkpoint: Path) -> dict[str, Any]:
        """All of it is in the state."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Take over what `save` has kept."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

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
        # Left on the device: reading them here would hold up the launching of everything below.
        counts = torch.stack([(targets_BT != IGNORED).sum() for _, targets_BT in microbatches]).float()
        shares = counts / counts.sum().clamp(min=1)

        def loss(ids_BT: Tensor, targets_BT: Tensor, share: Tensor) -> Tensor:
            return self.model(ids_BT, targets_BT) * share

        return self.update(
            [functools.partial(loss, *pair, share) for pair, share in zip(microbatches, shares, strict=True)]
        )

    def update(self, losses: Sequence[Callable[[], Tensor]]) -> StepResult:
        """One optimizer update from the sum of some losses, each computed and propagated by itself."""
        total = torch.zeros((), device=self._device)
        for compute in losses:
            with self._autocast():
                loss = compute()
            loss.backward()
            total += loss.detach()
        limit = self._clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        # The only place of a step that waits for the device.
        loss_sum, size = torch.stack([total, norm.to(total)]).tolist()
        result = StepResult(loss_sum, size, math.isfinite(loss_sum) and math.isfinite(size))
        if result.is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees for the next one: nothing where there is no glibc.

    glibc gives large blocks back to the system, which clears each page anew when it is touched again: 4 to 20 % of a
    step (LOG.md).
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: bytes kept at the heap's end, the most that is possible
        set_option(-3, LARGEST_KEPT)  # M_MMAP_THRESHOLD, which would be 128 KiB from now on


def give_back_memory() -> None:
    """Give the system what is kept so, and what nobody needs any more: another stage's blocks have other sizes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def require_compiler() -> None:
    """Make sure that torch can compile for a CPU, or for a GPU's launchers.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    names = [os.environ.get("CXX", "g++"), "g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names):
        raise ConfigError("--compile: needs a C++ compiler, and none was found; install g++, or leave it out")


def recompute_blocks(model: nn.Module) -> None:
    """Keep no activations within a model's blocks: the backward pass computes them again, for less memory."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.forward = _Recomputed(block.forward)


class _Recomputed:
    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*arguments)
        return recomputed(self._forward, *arguments, use_reentrant=False)
