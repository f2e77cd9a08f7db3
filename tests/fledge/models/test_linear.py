import pytest
import torch
from torch import nn

from fledge.models.linear import Linear, linear, quicken


def _result_and_gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    result = function(*leaves)
    weights = torch.arange(result.numel(), dtype=result.dtype).view_as(result)
    return result, *torch.autograd.grad((result * weights).sum() / result.numel(), leaves)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (1, 1, 7)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_are_torchs_in_float64(shape, has_bias):
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, (5, 7), (5,)] if has_bias else [shape, (5, 7)]
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    expected = _result_and_gradients(nn.functional.linear, *(tensor.double() for tensor in tensors))
    for found, exact in zip(_result_and_gradients(linear, *tensors), expected, strict=True):
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


def test_views_give_what_copies_give():
    x, weight = torch.randn(7, 3).T, torch.randn(7, 5).T
    assert torch.equal(linear(x, weight), linear(x.contiguous(), weight.contiguous()))
    assert torch.equal(linear(x.expand(4, 3, 7)[:, 1:], weight)[2], linear(x[1:].contiguous(), weight))


def test_no_rows_give_no_rows():
    assert linear(torch.empty(0, 7), torch.randn(5, 7)).shape == (0, 5)


def test_autocast_computes_in_its_number_format():
    layer = Linear(7, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 7)).dtype == torch.bfloat16


def test_only_asked_for_gradients_are_made():
    layer = Linear(7, 5)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 7, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 7))


def test_quickened_layers_give_what_they_gave_and_keep_their_names():
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))
    x, names = torch.randn(4, 7), list(model.state_dict())
    expected = model(x)
    torch.testing.assert_close(quicken(model)(x), expected)
    assert list(model.state_dict()) == names
    assert all(isinstance(layer, Linear | nn.ReLU) for layer in model)
