"""Loss and norm, whose gradients are worked out by hand, against torch's own and autograd."""

import pytest
import torch

from fledge.models.attention import rms_norm
from fledge.models.loss import _loss_and_gradient_fused, linear_cross_entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_chunked_loss_equals_plain_cross_entropy(reduction: str, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    # 700 tokens are more than one chunk; 45 of 48 rows are real.
    hidden = torch.randn(2, 350, 16, generator=generator, requires_grad=True)
    weight = torch.randn(48, 16, generator=generator, requires_grad=True)
    targets = torch.randint(45, (2, 350), generator=generator)
    targets[:, 100:200] = -100
    logits = hidden @ weight[:45].T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
    found = linear_cross_entropy(hidden, weight, targets, 45, softcap, reduction)  # type: ignore[arg-type]
    with torch.no_grad():
        unneeded = linear_cross_entropy(hidden, weight, targets, 45, softcap, reduction)  # type: ignore[arg-type]
    expected = expected.view(found.shape)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(unneeded, expected)
    factors = torch.rand(found.shape, generator=generator)
    by_ours = torch.autograd.grad((found * factors).sum(), (hidden, weight))
    by_plain = torch.autograd.grad((expected * factors).sum(), (hidden, weight))
    for a, b in zip(by_ours, by_plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_for_a_compiler_equals_autograd_through_cross_entropy(
    softcap: float | None, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 48, generator=generator).to(dtype)  # 45 of 48 columns are real
    targets = torch.randint(45, (40,), generator=generator)
    targets[5:9] = -100
    told = logits.float().requires_grad_()
    capped = (told if softcap is None else softcap * torch.tanh(told / softcap))[:, :45]
    expected = torch.nn.functional.cross_entropy(capped, targets, reduction="sum")
    loss, gradient = _loss_and_gradient_fused(logits, targets, 45, softcap)
    torch.testing.assert_close(loss, expected)
    # bfloat16: the gradient is rounded to what the products take anyway.
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, told)[0].to(dtype))


@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm_equals_torch(weighted: bool) -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(8, requires_grad=True) if weighted else None
    inputs = (x,) if weight is None else (x, weight)
    expected, found = torch.nn.functional.rms_norm(x, (8,), weight, 1e-5), rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(found, expected)
    factors = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((found * factors).sum(), inputs),
        torch.autograd.grad((expected * factors).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, None])
def test_rms_norm_in_bfloat16_is_the_rounded_one(weight_dtype: torch.dtype | None) -> None:
    x = torch.randn(3, 5, 8).bfloat16().requires_grad_()
    weight = None if weight_dtype is None else torch.randn(8, dtype=weight_dtype, requires_grad=True)
    inputs = (x,) if weight is None else (x, weight)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.nn.functional.rms_norm(exact[0], (8,), *exact[1:], eps=1e-5)
    found = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(found, expected.bfloat16())
    factors = torch.randn(3, 5, 8).bfloat16()
    for a, b in zip(
        torch.autograd.grad(found, inputs, factors), torch.autograd.grad(expected, exact, factors.double()), strict=True
    ):
        torch.testing.assert_close(a, b.to(a.dtype))


def test_under_autocast_an_operand_is_cast_once_for_all_products() -> None:
    x = torch.randn(3, 5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        stream, operand = rms_norm(x, None, 1e-5), rms_norm(x, None, 1e-5, is_operand=True)
    assert stream.dtype == torch.float32
    assert torch.equal(operand, stream.bfloat16())
    assert torch.autograd.grad(operand.sum(), x)[0].dtype == torch.float32
