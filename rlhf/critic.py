"""The critic: what an answer will have earned by its end, foreseen before each of its tokens.

Shapes as in `rlhf.policy`.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fledge.models import classifier
from fledge.models.classifier import OwnClassifier
from rlhf.policy import Answers, trunk


class Critic(nn.Module):
    """A language model's body with one number at each token, float32."""

    def __init__(self, body: nn.Module, score: nn.Linear, wear: Callable[[], None] = lambda: None) -> None:
        """`wear` as in `Policy`."""
        super().__init__()
        self.body, self.score, self._wear = body, score, wear
        self.eval()

    @classmethod
    def from_policy(cls, model: Any) -> "Critic":
        """A copy of a policy's body; the new head says 0 of everything."""
        body = copy.deepcopy(model if hasattr(model, "hidden") else model.base_model).requires_grad_(True)
        if getattr(body, "lm_head", None) is not None:
            body.lm_head.requires_grad_(False)
        return cls(body, new_head(model))

    @classmethod
    def from_reward_model(cls, folder: Path, device: str = "cpu") -> "Critic":
        """A reward model, which says at each token what it would say of a text that ended there."""
        model = classifier.load(folder, device, is_reward=True).model
        if isinstance(model, OwnClassifier):
            return cls(model.body.requires_grad_(True), model.score)
        return cls(model.base_model, classifier.head(model))

    def values(self, answers: Answers) -> Tensor:
        """Expected reward from each answer token on, before it is known: float32 (M,)."""
        self._wear()
        device = self.score.weight.device
        ids_BT, row_M, place_M = answers.predicting(device)
        hidden_MD = trunk(self.body)(ids_BT)[row_M, place_M]
        with torch.autocast(device.type, enabled=False):  # bfloat16 would round small returns
            value_M1: Tensor = self.score(hidden_MD.float())
        return value_M1[:, 0]

    @torch.no_grad()
    def scored(self, answers: Answers) -> list[Tensor]:
        """Values without gradients, (N,) on the CPU for each answer; in batches of like length."""
        return answers.in_batches(self.values)


def new_head(model: Any) -> nn.Linear:
    """A head for a model's hidden states that says 0 of everything."""
    width = model.config.width if hasattr(model, "hidden") else model.config.hidden_size
    score = nn.Linear(width, 1, bias=False, device=next(model.parameters()).device)
    nn.init.zeros_(score.weight)
    return score
