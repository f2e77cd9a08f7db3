"""One copy of a model's weights for policy, critic and reference, which differ by PEFT's low-rank adapters alone."""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from finetune.config import LoraConfig
from fledge.errors import ConfigError

POLICY, CRITIC = "policy", "critic"


class SharedTrunk:
    """A model with two adapters, of which it wears one, or (as the reference) none."""

    def __init__(self, model: Any, settings: LoraConfig, seed: int) -> None:
        """Put the adapters on, in place; they change nothing until they are trained.

        Raises:
            ConfigError: a target is the name of no layer.
        """
        import peft
        from transformers.pytorch_utils import Conv1D

        torch.manual_seed(seed)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and "lm_head" not in n}
        names = {name.split(".")[-1] for name in layers}
        wanted = names if settings.targets == ["all-linear"] else set(settings.targets)
        if unknown := sorted(wanted - names):
            raise ConfigError(
                f"--lora.targets {unknown[0]}: no layer of the model is named so; there are: {', '.join(sorted(names))}"
            )
        adapter = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank if settings.alpha is None else settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=[name for name in layers if name.split(".")[-1] in wanted],
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        )
        with warnings.catch_warnings():
            # PEFT asks transformers by a name that is to be another in the next major version.
            warnings.simplefilter("ignore", FutureWarning)
            self._tuner = peft.LoraModel(model, {POLICY: adapter}, POLICY)
            self._tuner.peft_config[CRITIC] = adapter
            self._tuner.inject_adapter(model, CRITIC)

    def wear(self, name: str | None) -> None:
        """Put on one adapter, which then is what has gradients, or none."""
        if name is None:
            self._tuner.disable_adapter_layers()
        else:
            self._tuner.enable_adapter_layers()
            self._tuner.set_adapter(name)

    def merged(self) -> Any:
        """A model of its own with the policy's adapter in its weights."""
        return copy.deepcopy(self._tuner).merge_and_unload(adapter_names=[POLICY])
