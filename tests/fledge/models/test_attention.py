"""Attention by matrix products against torch's kernel in float32."""

import pytest
import torch
from torch.nn import functional

from fledge.models import attention

B, H, T, E = 3, 2, 40, 16


def tensors() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(B, T, H, E).transpose(1, 2).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("is_padded", [False, True])
def test_bfloat16_products_equal_the_float32_kernel_to_rounding(is_padded: bool) -> None:
    is_padding_BT = torch.zeros(B, T, dtype=torch.bool)
    is_padding_BT[0, :7] = is_padded
    visible = attention.visible_keys(T, 0, is_padding_BT if is_padded else None, torch.device("cpu"))
    exact = tensors()
    expected = functional.scaled_dot_product_attention(*exact, attn_mask=visible, is_causal=visible is None)
    expected_BTD = expected.transpose(1, 2).flatten(2)
    weights_BTD = torch.randn_like(expected_BTD)
    (expected_BTD * weights_BTD).sum().backward()
    rounded = tensors()
    found_BTD = attention.attend(*(x.bfloat16() for x in rounded), visible)
    assert found_BTD.dtype == torch.bfloat16
    (found_BTD * weights_BTD).sum().backward()
    torch.testing.assert_close(found_BTD.float(), expected_BTD, atol=0.03, rtol=0)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert float((ours.grad - theirs.grad).norm()) < 0.01 * float(theirs.grad.norm())


def test_padding_changes_nothing_that_is_read() -> None:
    query, key, value = (x.detach().bfloat16() for x in tensors())
    is_padding_BT = torch.zeros(B, T, dtype=torch.bool)
    is_padding_BT[:, :7] = True
    visible = attention.visible_keys(T, 0, is_padding_BT, torch.device("cpu"))
    before = attention.attend(query, key, value, visible)[:, 7:]
    key[:, :, :7], value[:, :, :7] = 100, -100
    assert torch.equal(attention.attend(query, key, value, visible)[:, 7:], before)
