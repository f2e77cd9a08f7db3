"""One token after the other through a model, with what was read before kept: ours, and transformers' own.

Shapes: B rows, T tokens, V vocabulary.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fledge.errors import ModelError
from fledge.models.cache import KVCache
from fledge.models.graphed import GraphedStep, recorded
from fledge.models.linear import packed_copies, use_packed


def decoder(model: Any, prompts: Sequence[Sequence[int]], room: int) -> "OwnDecoder | TransformersDecoder":
    """A decoder for our models (also wrapped by PEFT) or any causal language model of transformers.

    Args:
        prompts: ids, at least one each; of different lengths.
        room: tokens that will be read in all, the longest prompt among them.
    """
    kind = OwnDecoder if hasattr(model, "hidden") else TransformersDecoder
    return kind(model, *left_padded(prompts, next(model.parameters()).device), room)


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """ids_BT with the prompts at the right, and is_padding_BT; None if they are all of one length."""
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids_BT, None
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids_BT, torch.arange(longest, device=device) < (longest - lengths_B)[:, None]


class OwnDecoder:
    """Our models, with buffers of fixed size for keys and values."""

    def __init__(self, model: Any, ids_BT: Tensor, is_padding_BT: Tensor | None, room: int) -> None:
        self._model, self._ids_BT, self._is_padding_BT = model, ids_BT, is_padding_BT
        dtype = model.head_weight.dtype
        self._cache = KVCache(model.config, len(ids_BT), room, dtype, ids_BT.device)
        self._packed: dict[int, Tensor] | None = None
        self._graph: GraphedStep | None = None

    def start(self) -> Tensor:
        """Read the prompts; float32 logits (B, V) of the first new tokens."""
        return self._logits(self._ids_BT, self._is_padding_BT)

    def step(self, ids_B: Tensor) -> Tensor:
        """Read one more token in each row; float32 logits (B, V) of the next."""
        ids_B = ids_B.to(self._ids_BT.device)
        self._graph = recorded(self._model, self._cache, ids_B, self._graph)
        if self._graph is not None:
            return self._graph(ids_B)
        if self._packed is None:
            self._packed = packed_copies(self._model)
        with use_packed(self._packed):
            return self._logits(ids_B[:, None], None)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order; row i may move to place j < i, but not the other way."""
        self._cache.keep(rows)

    def _logits(self, ids_BT: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        hidden_BTD = self._model.hidden(ids_BT, cache=self._cache, is_padding_BT=is_padding_BT)
        logits: Tensor = self._model.logits(hidden_BTD[:, -1])
        return logits


def forward_arguments(model: Any) -> Mapping[str, inspect.Parameter]:
    """What a causal language model of transformers, perhaps wrapped by PEFT, can be called with.

    Raises:
        ModelError: it has no cache of keys and values, so it can't be sampled from.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(inner.forward).parameters
    if "past_key_values" not in accepted:
        raise ModelError(
            f"{type(inner).__name__}: has no cache of keys and values (past_key_values), without which fledge "
            "can't let a model write; take one with attention"
        )
    return accepted


class TransformersDecoder:
    """A causal language model of transformers, with its own cache."""

    def __init__(self, model: Any, ids_BT: Tensor, is_padding_BT: Tensor | None, room: int) -> None:
        self._model, self._ids_BT = model, ids_BT
        is_padding_BT = torch.zeros_like(ids_BT, dtype=torch.bool) if is_padding_BT is None else is_padding_BT
        self._is_real_BT = (~is_padding_BT).long()
        self._positions_BT = (self._is_real_BT.cumsum(1) - 1).clamp(min=0)
        self._cache: Any = None
        self._accepted = forward_arguments(model)

    def start(self) -> Tensor:
        """See `OwnDecoder`."""
        return self._logits(self._ids_BT)

    def step(self, ids_B: Tensor) -> Tensor:
        """See `OwnDecoder`."""
        self._is_real_BT = torch.nn.functional.pad(self._is_real_BT, (0, 1), value=1)
        self._positions_BT = self._positions_BT[:, -1:] + 1
        return self._logits(ids_B[:, None].to(self._ids_BT.device))

    def keep(self, rows: Sequence[int]) -> None:
        """See `OwnDecoder`."""
        chosen = torch.tensor(rows, device=self._ids_BT.device)
        self._cache.batch_select_indices(chosen)
        self._is_real_BT, self._positions_BT = self._is_real_BT[chosen], self._positions_BT[chosen]

    def _logits(self, ids_BT: Tensor) -> Tensor:
        # A mixture of experts would else balance them over the tokens of this call alone, and fail at the mask.
        optional = {"position_ids": self._positions_BT, "logits_to_keep": 1, "output_router_logits": False}
        output = self._model(
            input_ids=ids_BT,
            attention_mask=self._is_real_BT,
            past_key_values=self._cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted},
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float()
        return logits
