"""The loss of a language model from its last hidden states, without holding all logits at once.

Shapes: N tokens, D width, V vocabulary (padded), C tokens of one chunk.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fledge.models.linear import linear

IGNORED = -100  # a target that is left out, as everywhere in torch

# Rows of logits held at once: on a CPU what stays in its caches (512 was fastest, or near, of 128-4096 for
# vocabularies of 65, 1,000 and 8,192); on a GPU what fills it.
CHUNK = {"cpu": 512}
CHUNK_ELSEWHERE = 4096

_in_few_passes: Any = None  # `_loss_and_gradient_fused`, compiled; see `compile_loss`


def linear_cross_entropy(
    hidden: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    vocab_size: int,
    softcap: float | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Cross-entropy in nats of targets under softmax(weight @ hidden), float32.

    Args:
        hidden: (..., D).
        targets: ids with the leading shape of hidden; -100 is left out.
        vocab_size: rows of weight from this one on are padding and get no probability.
        softcap: logits are softcap * tanh(logits / softcap).
        reduction: "mean" over the targets not left out (0 if there are none), "sum", or "none": one loss
            for each target.
    """
    hidden_ND, targets_N = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight_VD.requires_grad)
    if needs_gradient and reduction != "none":
        total = _SummedLoss.apply(hidden_ND, weight_VD, targets_N, vocab_size, softcap)
    else:
        chunk = CHUNK.get(hidden.device.type, CHUNK_ELSEWHERE)
        losses = []
        for some_CD, some_C in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
            arguments = some_CD, weight_VD, some_C, vocab_size, softcap
            if needs_gradient:  # the chunk's logits are made again in the backward pass
                losses.append(checkpoint(_losses, *arguments, use_reentrant=False))
            else:
                losses.append(_losses(*arguments))
        loss_N = torch.cat(losses)
        if reduction == "none":
            return loss_N.view(targets.shape)
        total = loss_N.sum()
    return total / (targets_N != IGNORED).sum().clamp(min=1) if reduction == "mean" else total


def _losses(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, vocab_size: int, softcap: float | None) -> Tensor:
    logits_CV = linear(hidden_CD, weight_VD)[:, :vocab_size].float()
    if softcap is not None:
        logits_CV = softcap * torch.tanh(logits_CV / softcap)
    return functional.cross_entropy(logits_CV, targets_C, ignore_index=IGNORED, reduction="none")


def linear_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_N: Tensor,
    vocab_size: int,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of ids under softmax(weight @ hidden / temperature), and that distribution's entropy.

    Arguments as in `linear_cross_entropy`; nothing is left out. Logits are held for one chunk at a time.
    Returns:
        float32 (N,), nats, twice.
    """
    chunk = CHUNK.get(hidden_ND.device.type, CHUNK_ELSEWHERE)
    parts = []
    for some_CD, some_C in zip(hidden_ND.split(chunk), ids_N.split(chunk), strict=True):
        arguments = some_CD, weight_VD, some_C, vocab_size, softcap, temperature
        if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
            parts.append(checkpoint(_logprobs, *arguments, use_reentrant=False))
        else:
            parts.append(_logprobs(*arguments))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _logprobs(
    hidden_CD: Tensor, weight_VD: Tensor, ids_C: Tensor, vocab_size: int, softcap: float | None, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_CV = linear(hidden_CD, weight_VD)[:, :vocab_size].float()
    if softcap is not None:
        logits_CV = softcap * torch.tanh(logits_CV / softcap)
    logprobs_CV = functional.log_softmax(logits_CV / temperature, -1)
    return logprobs_CV.gather(1, ids_C[:, None])[:, 0], -(logprobs_CV.exp() * logprobs_CV).sum(-1)


class _SummedLoss(torch.autograd.Function):
    """The summed loss; its gradients are made chunk by chunk in the forward pass, beside the logits.

    So nothing is computed twice. The backward pass only scales them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, vocab_size: int, softcap: float | None
    ) -> Tensor:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        chunk = CHUNK.get(device, CHUNK_ELSEWHERE)
        hidden_gradient = torch.empty_like(hidden_ND)
        # float32: a sum over many chunks in bfloat16 would lose its small parts.
        weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), device=hidden_ND.device)
        with torch.autocast(device, enabled=False):
            weight = weight_VD.to(dtype)
            for start in range(0, len(hidden_ND), chunk):
                some = slice(start, start + chunk)
                hidden_CD, targets_C = hidden_ND[some].to(dtype), targets_N[some]
                work_out = _in_few_passes or _loss_and_gradient
                loss, gradient_CV = work_out(linear(hidden_CD, weight), targets_C, vocab_size, softcap)
                total += loss
                gradient_CV = gradient_CV.to(dtype)
                hidden_gradient[some] = linear(gradient_CV, weight.T)
                weight_gradient += linear(gradient_CV.T, hidden_CD.T)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (gradient,) = gradients
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradient, (weight_gradient * gradient).to(ctx.weight_dtype), None, None, None


def _loss_and_gradient(
    logits_CV: Tensor, targets_C: Tensor, vocab_size: int, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Summed loss and its gradient by the logits before they are capped: softmax minus one at the target."""
    logits_CV = logits_CV.float()
    slope_CV = None
    if softcap is not None:
        squashed_CV = torch.tanh(logits_CV / softcap)
        logits_CV, slope_CV = softcap * squashed_CV, 1 - squashed_CV.square()
    logits_CV[:, vocab_size:] = -torch.inf
    logprobs_CV = functional.log_softmax(logits_CV, -1)
    is_counted_C1 = (targets_C != IGNORED)[:, None]
    targets_C1 = targets_C.clamp(min=0)[:, None]
    loss = -(logprobs_CV.gather(1, targets_C1) * is_counted_C1).sum()
    gradient_CV = logprobs_CV.exp_()
    gradient_CV.scatter_add_(1, targets_C1, gradient_CV.new_full(targets_C1.shape, -1))
    if slope_CV is not None:
        gradient_CV *= slope_CV
    return loss, gradient_CV.mul_(is_counted_C1)


def _loss_and_gradient_fused(
    logits_CV: Tensor, targets_C: Tensor, vocab_size: int, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The same for a compiler: no scattering and nothing in place, so that it reads and writes the logits as they are.

    Without it the passes over float32 logits take a third of a small model's step on a GPU (by their bytes).
    """
    capped_CV, slope_CV = logits_CV.float(), None
    if softcap is not None:
        squashed_CV = torch.tanh(capped_CV / softcap)
        capped_CV, slope_CV = softcap * squashed_CV, 1 - squashed_CV.square()
    column_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    capped_CV = torch.where(column_V < vocab_size, capped_CV, -torch.inf)
    is_counted_C1 = (targets_C != IGNORED)[:, None]
    normaliser_C1 = capped_CV.logsumexp(-1, keepdim=True)
    is_target_CV = column_V == targets_C[:, None]
    said_C1 = torch.where(is_target_CV, capped_CV, 0).sum(-1, keepdim=True)
    loss = torch.where(is_counted_C1, normaliser_C1 - said_C1, 0).sum()
    gradient_CV = (capped_CV - normaliser_C1).exp() - is_target_CV.float()
    if slope_CV is not None:
        gradient_CV = gradient_CV * slope_CV
    return loss, (gradient_CV * is_counted_C1).to(logits_CV.dtype)


def compile_loss() -> None:
    """Let torch compile the loss with its gradient, from now on and for all models of this process."""
    global _in_few_passes
    if _in_few_passes is None:
        _in_few_passes = torch.compile(_loss_and_gradient_fused)
