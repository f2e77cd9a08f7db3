"""The plain engine."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from fledge.engine import TorchEngine
from fledge.errors import ConfigError
from fledge.models import architecture


class Bigram(nn.Module):
    """Ten tokens, each predicted from the one before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(10, 10))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.table[ids_BT].flatten(0, 1), targets_BT.flatten())


def engine(model: nn.Module, clip_norm: float = 0.0) -> TorchEngine:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return TorchEngine(model, optimizer, clip_norm, "cpu", torch.float32)


def batch(rows: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    targets = torch.randint(0, 10, (rows, 6))
    targets[: rows // 2, 2:] = -100  # the first rows have fewer targets
    return torch.randint(0, 10, (rows, 6)), targets


def test_accumulated_equals_whole_batch_token_for_token() -> None:
    whole = Bigram()
    parts = copy.deepcopy(whole)
    ids, targets = batch(8)
    one = engine(whole).step([(ids, targets)])
    eight = engine(parts).step(list(zip(ids.split(1), targets.split(1), strict=True)))
    torch.testing.assert_close(parts.table, whole.table, rtol=1e-6, atol=1e-7)
    assert eight.loss == pytest.approx(one.loss, rel=1e-6)
    assert eight.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)


def test_the_gradient_is_clipped_and_its_norm_reported_unclipped() -> None:
    model = Bigram()
    before = model.table.detach().clone()
    result = engine(model, clip_norm=1e-3).step([batch(8)])
    assert result.gradient_norm > 1e-3
    # One SGD step of learning rate 0.5 on a gradient of norm 1e-3.
    assert float((model.table.detach() - before).norm()) == pytest.approx(5e-4, rel=1e-3)


def test_a_non_finite_step_changes_nothing() -> None:
    model = Bigram()
    with torch.no_grad():
        model.table[3] = torch.nan
    before = model.table.detach().clone()
    result = engine(model, clip_norm=1.0).step([batch(8)])
    assert not result.is_finite
    assert torch.equal(model.table.nan_to_num(), before.nan_to_num())


class Edge(nn.Module):
    """A finite loss whose gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return self.x.sqrt().sum()


def test_a_non_finite_gradient_changes_nothing() -> None:
    model = Edge()
    result = engine(model).step([batch(2)])
    assert (result.loss, result.is_finite) == (0, False)
    assert model.x.item() == 0


def test_learning_rates_are_shares_of_their_peaks() -> None:
    subject = engine(Bigram())
    assert subject.set_learning_rate(0.1) == pytest.approx(0.05)
    assert subject.set_learning_rate(0.2) == pytest.approx(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_used_again() -> None:
    code = """if True:
        import resource, torch
        from fledge.engine import keep_freed_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.empty(10 << 20).fill_(1.0)  # 40 MiB: 10,240 pages, each of which is a fault when it is new
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        torch.set_num_threads(1)
        first = faults()
        keep_freed_memory()
        assert min(faults() for _ in range(20)) < first / 10, first
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compiling_without_a_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="--compile: needs a C\\+\\+ compiler, and none was found"):
        engine(Bigram()).compile()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    shape = architecture.find_config("qwen3").sized(vocab_size=50, context=8, layers=2, width=16, heads=2)
    subjects = [engine(architecture.build(shape, 0)) for _ in range(2)]
    subjects[1].compile()
    ids_BT, targets_BT = torch.randint(0, 50, (4, 8)), torch.randint(0, 50, (4, 8))
    for _ in range(3):
        eager, compiled = (subject.step([(ids_BT, targets_BT)]) for subject in subjects)
        assert compiled.loss == pytest.approx(eager.loss, abs=1e-5)
    with subjects[1].whole_weights() as model:
        assert list(model.state_dict()) == list(subjects[0].model.state_dict())
