"""Muon and AdamW against torch's own."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from pretrain import optimizer
from pretrain.config import OptimConfig


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embed = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 24)
        self.again = nn.Linear(8, 8)
        self.down = nn.Linear(24, 8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.again(torch.tanh(self.down(torch.tanh(self.up(self.token_embed(ids))))))
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.lm_head(query * key + value)


def gradients(model: Net, step: int) -> None:
    torch.manual_seed(step)
    ids = torch.randint(0, 11, (64,))  # enough for gradients of full rank
    loss = nn.functional.cross_entropy(model(ids), ids.roll(1))
    model.zero_grad()
    loss.backward()


def twins() -> tuple[Net, Net]:
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def assert_same(ours: Net, theirs: Net, tolerance: float) -> None:
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_adamw_equals_torch() -> None:
    ours, theirs = twins()
    config = OptimConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    mine = optimizer.build(ours, config)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    oracle = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
    )
    for step in range(10):
        gradients(ours, step)
        gradients(theirs, step)
        mine.step()
        oracle.step()
    assert_same(ours, theirs, 1e-6)


def test_muon_equals_torch_on_each_matrix_and_adamw_on_the_rest() -> None:
    ours, theirs = twins()
    config = OptimConfig(learning_rate=0.01, muon_learning_rate=0.02, weight_decay=0.1)
    mine = optimizer.build(ours, config)
    # The oracle has no fused weights: it gets query, key and value as parameters of their own.
    parts = [nn.Parameter(part.detach().clone()) for part in theirs.qkv.weight.chunk(3)]
    hidden = [theirs.up.weight, theirs.again.weight, theirs.down.weight]
    muon = torch.optim.Muon(
        [*hidden, *parts], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="original"
    )
    rest = [theirs.token_embed.weight, theirs.lm_head.weight]
    biases = [theirs.up.bias, theirs.again.bias, theirs.down.bias]
    adamw = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.95)
    )
    for step in range(2):
        gradients(ours, step)
        theirs.qkv.weight.data.copy_(torch.cat([p.detach() for p in parts]))
        gradients(theirs, step)
        for part, gradient in zip(parts, theirs.qkv.weight.grad.chunk(3), strict=True):  # type: ignore[union-attr]
            part.grad = gradient.clone()
        mine.step()
        muon.step()
        adamw.step()
    theirs.qkv.weight.data.copy_(torch.cat([p.detach() for p in parts]))
    # torch's Muon iterates in bfloat16, ours in float32, so weak directions of the
    # gradient differ by several percent; momentum, decay, step length and fused weights are what is compared here.
    for (name, a), b, start in zip(ours.named_parameters(), theirs.parameters(), twins()[0].parameters(), strict=True):
        moved = float((b - start).detach().norm())
        assert float((a - b).detach().norm()) < 0.1 * moved, name


def test_the_optimizer_is_set_as_was_asked() -> None:
    config = OptimConfig(beta1=0.7, beta2=0.8, momentum=0.6)
    muon, *adamw = optimizer.build(Net(), config).param_groups
    assert muon["momentum"] == 0.6
    assert [group["betas"] for group in adamw] == [(0.7, 0.8)] * 2


def test_orthogonalise_equals_its_polynomial_on_the_singular_values() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 4, 9, dtype=torch.float64)
    a, b, c = optimizer.NEWTON_SCHULZ
    for before, after in zip(matrices, optimizer.orthogonalise(matrices, torch.float64), strict=True):
        left, values, right = torch.linalg.svd(before, full_matrices=False)
        values = values / values.norm()
        for _ in range(optimizer.NUM_ITERATIONS):
            values = a * values + b * values**3 + c * values**5
        assert ((values > 0.6) & (values < 1.3)).all()
        torch.testing.assert_close(after, left @ values.diag() @ right, atol=1e-6, rtol=0)


def test_bfloat16_products_still_orthogonalise() -> None:
    torch.manual_seed(0)
    exact = torch.randn(2, 16, 48)
    rounded = optimizer.orthogonalise(exact, torch.bfloat16).float()
    values = torch.linalg.svdvals(rounded)
    assert ((values > 0.6) & (values < 1.3)).all()
    expected = optimizer.orthogonalise(exact, torch.float32)
    assert float((rounded - expected).norm()) < 0.05 * float(expected.norm())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_state_read_on_the_cpu_goes_to_the_device_of_its_weights(kind: Literal["muon", "adamw"]) -> None:
    ours, elsewhere = Net(), Net().to("meta")
    first, second = (optimizer.build(model, OptimConfig(optimizer=kind)) for model in (ours, elsewhere))
    gradients(ours, 0)
    first.step()
    second.load_state_dict(first.state_dict())
    assert {value.device.type for state in second.state.values() for value in state.values()} == {"meta"}


def test_resumed_equals_uninterrupted() -> None:
    ours, theirs = twins()
    first, second = (optimizer.build(model, OptimConfig()) for model in (ours, theirs))
    for step in range(3):
        for model, optim in ((ours, first), (theirs, second)):
            gradients(model, step)
            optim.step()
    fresh = optimizer.build(theirs, OptimConfig())
    fresh.load_state_dict(second.state_dict())
    for step in range(3, 6):
        for model, optim in ((ours, first), (theirs, fresh)):
            gradients(model, step)
            optim.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
