"""The weights that a run trains, as its checkpoints keep them: all of a model, or adapters, or a head."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

WEIGHTS = "weights.safetensors"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the weights that are trained, by name; frozen ones are the parent's and stay there."""
    state = {n: p.detach().contiguous().cpu() for n, p in model.named_parameters() if p.requires_grad}
    save_file(state, folder / WEIGHTS)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Take over the trained weights of a checkpoint."""
    parameters = dict(model.named_parameters())
    with torch.no_grad(), safe_open(checkpoint / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, no mapping
            parameters[name].copy_(file.get_tensor(name))
