"""Muon for the 2-D weights of the blocks with AdamW for everything else, as one torch optimizer."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fledge.deepspeed_engine import OwnOptimizer
from pretrain.config import OptimConfig

# Quintic that pushes singular values towards 1, five times applied (Jordan et al. 2024, "Muon").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def orthogonalise(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: all singular values between about 0.7 and 1.2.

    Args:
        matrices_NRC: N matrices of one shape with R <= C.
        dtype: of the matrix products; the authors use bfloat16, as the iteration mends its own rounding.
    Source: Newton-Schulz iteration of Muon (kellerjordan.github.io/posts/muon, 2024).
    """
    a, b, c = NEWTON_SCHULZ
    X = (matrices_NRC / (matrices_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(NUM_ITERATIONS):
        gram = X @ X.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        X = torch.baddbmm(X, polynomial, X, beta=a)
    return X


class MuonAdamW(torch.optim.Optimizer):
    """Muon on groups with `kind="muon"`, AdamW (decoupled decay, fused) on groups with `kind="adamw"`.

    Same-shaped matrices are orthogonalised in one batch. A weight that holds several matrices stacked by rows
    (fused query, key and value) carries their number of rows in `weight.fused_rows` and is treated as several.

    Args:
        dtype: of the matrix products that orthogonalise; weights and momenta keep theirs.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._dtype = dtype

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with the counts of steps beside their weights, where the fused kernel wants them."""
        super().load_state_dict(state_dict)
        for weight, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(weight.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all weights from their gradients."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon(group)
            else:
                self._adamw(group)

    def _muon(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        gradients = [p.grad for p in weights]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look ahead
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight, update in zip(weights, updates, strict=True):
            for part, part_update in _matrices(weight, update):
                by_shape[part.shape].append((part, part_update))
        for shape, pairs in by_shape.items():
            rows, columns = shape
            stacked = torch.stack([update if rows <= columns else update.mT for _, update in pairs])
            # A taller matrix gets a longer step, so that its output's change keeps its size (Jordan et al.).
            scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
            for (part, _), orthogonal in zip(pairs, orthogonalise(stacked, self._dtype), strict=True):
                part.add_(orthogonal if rows <= columns else orthogonal.mT, alpha=scale)

    def _adamw(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        states = [self.state[weight] for weight in weights]
        adamw(
            weights,
            [p.grad for p in weights],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _matrices(weight: Tensor, update: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows: list[int] | None = getattr(weight, "fused_rows", None)
    if rows is None:
        yield weight, update
    else:
        yield from zip(weight.split(rows), update.split(rows), strict=True)


def build(model: nn.Module, config: OptimConfig, dtype: torch.dtype = torch.float32) -> MuonAdamW:
    """The optimizer of a model: which weights go to Muon, which decay, and with what peak learning rate.

    Muon takes the 2-D weights whose name has no "embed" and no "head" (as DeepSpeed's own Muon selects);
    weight decay falls on 2-D weights only, not on norms and biases.
    """
    muon, decayed, plain = [], [], []
    for name, weight in model.named_parameters():
        if config.optimizer == "muon" and weight.ndim == 2 and "embed" not in name and "head" not in name:
            muon.append(weight)
            if name.endswith("qkv.weight"):  # GPT-2's fused query, key and value
                weight.fused_rows = [len(weight) // 3] * 3  # type: ignore[attr-defined]
        elif weight.ndim >= 2:
            decayed.append(weight)
        else:
            plain.append(weight)
    adamw_settings = {"kind": "adamw", "lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": 1e-8}
    groups = [
        {"params": muon, "kind": "muon", "lr": config.muon_learning_rate, "momentum": config.momentum}
        | {"weight_decay": config.weight_decay},
        {"params": decayed, **adamw_settings, "weight_decay": config.weight_decay},
        {"params": plain, **adamw_settings, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["peak_lr"] = group["lr"]
    return MuonAdamW(groups, dtype)


def deepspeeds_muon(model: nn.Module, config: OptimConfig, dtype: torch.dtype = torch.float32) -> OwnOptimizer:
    """The same by DeepSpeed's own Muon and Adam, for ZeRO 1-3, where no process has whole matrices.

    It takes fused query, key and value as one matrix.
    """
    weights = list(model.parameters())
    settings = {
        "lr": config.learning_rate,
        "adam_lr": config.learning_rate,
        "muon_lr": config.muon_learning_rate,
        "momentum": config.momentum,
        "betas": [config.beta1, config.beta2],
        "eps": 1e-8,
        "torch_adam": True,  # DeepSpeed's takes minutes to compile
    }
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    return OwnOptimizer({"type": "Muon", "params": settings}, groups)
