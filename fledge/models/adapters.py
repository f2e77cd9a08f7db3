"""Low-rank adapters by PEFT: put on, merged on export, and proved to be merged."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fledge.errors import ConfigError, first_line
from fledge.models import generation
from fledge.models.generation import Sampling


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float | None,
    dropout: float,
    targets: Sequence[str],
    seed: int,
    token_ids: Sequence[int] = (),
    task: str = "CAUSAL_LM",
) -> Any:
    """A transformers model with adapters; of its own weights only the rows of `token_ids` are trained.

    Args:
        targets: names of layers, or `all-linear` alone: each but the head.
        token_ids: tokens that the parent never met: their embeddings, and their rows of the head, tied or not.
    Raises:
        ConfigError: a target is the name of no layer, or of one that PEFT does not adapt.
    """
    import peft
    from transformers.pytorch_utils import Conv1D

    names = {module: name for name, module in model.named_modules()}
    rows = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not rows[0].weight:
        rows.append(head)
    for target in targets:
        if target != "all-linear" and not any(name == target or name.endswith(f".{target}") for name in names.values()):
            linear = {n.split(".")[-1] for m, n in names.items() if isinstance(m, torch.nn.Linear | Conv1D)}
            raise ConfigError(
                f"--lora.targets {target}: no layer of the model is named so; there are: {', '.join(sorted(linear))}"
            )
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if list(targets) == ["all-linear"] else list(targets),
        trainable_token_indices={names[m]: list(token_ids) for m in rows} if token_ids else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in names),
    )
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that is to be another in the next major version.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as error:
            raise ConfigError(f"{type(model).__name__}: PEFT puts no adapters on it ({first_line(error)})") from None


@dataclass(frozen=True)
class Written:
    """What a model says to fixed prompts: to compare before and after."""

    logits: list[Tensor]  # float32 (T, V), one a prompt
    answers: list[list[int]]  # greedy


def write(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int = 16) -> Written:
    """The logits over some prompts, and their greedy continuations."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        outputs = [model(torch.tensor([list(prompt)], device=device)) for prompt in prompts]
    logits = [(out if isinstance(out, Tensor) else out.logits)[0].float().cpu() for out in outputs]
    sampling = Sampling(max_new_tokens=num_tokens, temperature=0)
    return Written(logits, [c.ids for c in generation.generate(model, prompts, sampling)])


def compare(before: Written, after: Written) -> dict[str, Any]:
    """The proof that a model was merged and saved right: largest logit difference, and whether greedy text agrees."""
    differences = [
        float((a[:, : b.shape[1]] - b[:, : a.shape[1]]).abs().max())
        for a, b in zip(before.logits, after.logits, strict=True)
    ]
    return {"merge_max_logit_difference": max(differences), "merge_same_greedy_tokens": before.answers == after.answers}
