"""Causal attention with shared key-value heads, rotary positions, and the norms that have no fast CPU kernel.

Shapes: B rows, T tokens, H heads, K key-value heads (H is a multiple of K), E head width, S keys.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fledge.errors import ModelError

# Keys up to which all scores of a layer are held at once: (B, H, T, S) bfloat16, 42 MB for 16 rows of 5 heads at 512.
LONGEST_PRODUCT = 512


def visible_keys(num_tokens: int, past: int, is_padding_BS: Tensor | None, device: torch.device) -> Tensor | None:
    """Which keys each token may attend to, (B or 1, 1, T, S); None where plain causal attention says it."""
    if is_padding_BS is None and (past == 0 or num_tokens == 1):
        return None
    num_keys = past + num_tokens
    causal_TS = torch.ones(num_tokens, num_keys, dtype=torch.bool, device=device).tril(past)
    if is_padding_BS is None:
        return causal_TS[None, None]
    # A padding token sees itself, as softmax over nothing is not a number.
    itself_TS = torch.eye(num_keys, dtype=torch.bool, device=device)[past:]
    return (causal_TS & (~is_padding_BS[:, None] | itself_TS))[:, None]


def attend(
    query_BHTE: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, visible: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention, heads side by side: (B, T, H * E).

    Args:
        visible: from `visible_keys`; None is causal, or everything for a single token.
        dropout: share of attention weights set to zero; 0 outside of training.
    """
    num_tokens, num_keys = query_BHTE.shape[2], key_BKSE.shape[2]
    is_grouped = query_BHTE.shape[1] != key_BKSE.shape[1]
    if (
        query_BHTE.device.type == "cpu"
        and query_BHTE.dtype == torch.bfloat16
        and 1 < num_tokens <= num_keys <= LONGEST_PRODUCT
        and not is_grouped
        and not dropout
    ):
        mixed_BHTE = _attend_by_products(query_BHTE, key_BKSE, value_BKSE, visible)
    elif query_BHTE.device.type == "cpu" and num_tokens == 1 < num_keys and not torch.is_grad_enabled():
        mixed_BHTE = _attend_to_cache(query_BHTE, key_BKSE, value_BKSE, visible)
    else:
        mixed_BHTE = functional.scaled_dot_product_attention(
            query_BHTE,
            key_BKSE,
            value_BKSE,
            attn_mask=visible,
            dropout_p=dropout,
            is_causal=visible is None and num_tokens > 1,
            enable_gqa=is_grouped,
        )
    return mixed_BHTE.transpose(1, 2).flatten(2)


def _attend_by_products(query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, visible: Tensor | None) -> Tensor:
    """Attention as two matrix products: on CPUs that multiply bfloat16, 2 to 3 times as fast as torch's kernel."""
    if visible is None:
        causal_TS = torch.ones(query_BHTE.shape[2], key_BHSE.shape[2], dtype=torch.bool)
        visible = causal_TS.tril(key_BHSE.shape[2] - query_BHTE.shape[2])
    unseen = torch.zeros(visible.shape, dtype=query_BHTE.dtype).masked_fill_(~visible, -torch.inf)
    scores_BHTS = (query_BHTE * query_BHTE.shape[-1] ** -0.5) @ key_BHSE.mT
    return scores_BHTS.add_(unseen).softmax(-1) @ value_BHSE


def _attend_to_cache(query_BH1E: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of one token to the buffers of a `KVCache` on a CPU: 2 to 8 times as fast as torch's kernel.

    Both halves are weighted sums of rows: the scores of rows of the transposed keys, by the query's numbers; the
    result of rows of values, by softmax. Torch's `embedding_bag` makes them at the speed of memory.
    """
    (num_rows, num_heads, _, width), (_, kv_heads, num_keys, _) = query_BH1E.shape, key_BKSE.shape
    room, heads, group = key_BKSE.stride(3), num_rows * num_heads, num_heads // kv_heads
    query_NE = query_BH1E.reshape(heads, width) * width**-0.5
    if 3 * num_keys > room:  # only whole rows are contiguous
        keys = key_BKSE.as_strided((num_rows * kv_heads * width, room), (room, 1))
        scores_NS = _weighted_sums(_rows(heads, group, width, width), keys, query_NE)[:, :num_keys]
    else:
        scores_NS = (query_NE.view(num_rows, kv_heads, group, width) @ key_BKSE.mT).view(heads, num_keys)
    if visible is not None:
        scores_NS = scores_NS.view(num_rows, num_heads, num_keys).masked_fill(~visible[:, 0], -torch.inf)
    values = value_BKSE.as_strided((num_rows * kv_heads * room, width), (width, 1))
    weights_NS = scores_NS.softmax(-1).view(heads, num_keys)
    mixed_NE = _weighted_sums(_rows(heads, group, room, num_keys), values, weights_NS)
    return mixed_NE.view(num_rows, num_heads, 1, width)


def _weighted_sums(rows: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    return functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


@functools.lru_cache(maxsize=4)
def _rows(heads: int, group: int, stride: int, count: int) -> Tensor:
    """Which `count` rows belong to each head, where `group` heads share `stride` rows: int32 (heads, count)."""
    first = torch.arange(heads, dtype=torch.int32).div_(group, rounding_mode="floor").mul_(stride)
    return first[:, None] + torch.arange(count, dtype=torch.int32)


def rotary_tables(context: int, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 (context, head_width), of the angle by which a position turns each pair.

    Number i is paired with i + head_width / 2. The sign of the rotation of a pair's first half is in `sin`.
    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34, in the half-split order of transformers.
    """
    # On the CPU even within `torch.device("meta")`, as these are values and not weights to be loaded.
    pairs = torch.arange(0, head_width, 2, dtype=torch.float, device="cpu")
    angles = torch.outer(torch.arange(context, dtype=torch.float, device="cpu"), 1.0 / (base ** (pairs / head_width)))
    return torch.cat((angles, angles), 1).cos(), torch.cat((-angles, angles), 1).sin()


def rotary_base(content: dict[str, Any]) -> float:
    """The base of the rotary angles in a config.json, in its older or newer form; 10,000 if there is none.

    Raises:
        ModelError: the angles are scaled, which is not implemented.
    """
    newer, older = content.get("rope_parameters"), content.get("rope_scaling")
    for key, found in (("rope_parameters", newer), ("rope_scaling", older)):
        kind = (found or {}).get("rope_type", (found or {}).get("type", "default"))
        if kind != "default" or (found or {}).get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError(f"config.json: {key} = {found!r} is not implemented; only rope_type 'default'")
    return float((newer or {}).get("rope_theta", content.get("rope_theta", 10_000.0)))


def rotate(x_BTHE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> Tensor:
    """Turn each pair of numbers by its position's angle; in the dtype of x, as transformers does."""
    cos_T1E, sin_T1E = cos_T1E.to(x_BTHE.dtype), sin_T1E.to(x_BTHE.dtype)
    swapped = x_BTHE.roll(x_BTHE.shape[-1] // 2, -1)
    return torch.addcmul(x_BTHE * cos_T1E, swapped, sin_T1E)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, is_operand: bool = False) -> Tensor:
    """x divided by its root mean square over the last dimension, times a weight if there is one.

    Args:
        is_operand: the result is read by matrix products only, so that under autocast it may have their dtype: one
            cast for all of them.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4.
    """
    if x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu" and not torch.compiler.is_compiling():
        dtype = torch.get_autocast_dtype("cpu") if is_operand and torch.is_autocast_enabled("cpu") else x.dtype
        if torch.is_grad_enabled():
            return _CpuRMSNorm.apply(x, weight, epsilon, dtype)
        # The same numbers without the bookkeeping, which is half of a small model's decoding step.
        return _cpu_rms_norm(x, weight, epsilon, dtype)[0]
    weight = None if weight is None else weight.to(x.dtype)  # they differ under autocast
    return functional.rms_norm(x, (x.shape[-1],), weight, epsilon)


def _cpu_rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The normed values, worked out in float32, and what x was multiplied with."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    normed = x * scale
    return (normed if weight is None else normed.mul_(weight)).to(dtype), scale


class _CpuRMSNorm(torch.autograd.Function):
    """Forward and backward in about half the passes over memory that torch's own takes on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, epsilon: float, dtype: torch.dtype) -> Tensor:
        normed, scale = _cpu_rms_norm(x, weight, epsilon, dtype)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        # With s = (mean x^2 + eps)^-1/2, n = x s, y = weight n and g = dL/dn = weight dL/dy:
        # dL/dx = s (g - n mean(g n)), dL/dweight = sum dL/dy n.
        gradient = gradients[0].float()
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = gradient * normed
        if weight is None:
            weight_gradient, mean = None, product.mean(-1, keepdim=True)
            scaled = gradient.addcmul(normed, mean, value=-1)
        else:
            weight_gradient = product.reshape(-1, len(weight)).sum(0).to(weight.dtype)
            mean = (product @ weight.float()).div_(len(weight)).unsqueeze(-1)
            scaled = (gradient * weight).addcmul_(normed, mean, value=-1)
        return scaled.mul_(scale).to(x.dtype), weight_gradient, None, None
