"""What only a GPU can show: kernels taken, waits counted, compiled equal to eager, copies that do not block."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fledge.engine import TorchEngine
from fledge.models.architecture import LanguageModel, build, find_config
from pretrain import optimizer
from pretrain.batches import Batches, ReadAhead
from pretrain.config import OptimConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]
ARCHITECTURES = ["gpt2", "qwen3", "nanochat"]


def model_of(name: str) -> LanguageModel:
    shape = {"vocab_size": 300, "context": 128, "layers": 2, "width": 128, "heads": 2}
    return build(find_config(name).sized(**shape), 0, 64).cuda()


def engine_of(model: LanguageModel, kind: str = "muon") -> TorchEngine:
    made = optimizer.build(model, OptimConfig(optimizer=kind), torch.bfloat16)
    return TorchEngine(model, made, 1.0, "cuda", torch.bfloat16)


def microbatches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    ids_BS = torch.randint(300, (8, 129), generator=torch.Generator().manual_seed(0)).cuda()
    ids_BT, targets_BT = ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous()
    return list(zip(ids_BT.split(4), targets_BT.split(4), strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_takes_flash_attention(name: str) -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where the kernel can't be used
        assert engine_of(model_of(name)).step(microbatches()).is_finite


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_an_optimizer_goes_on_from_a_state_read_on_the_cpu(kind: str, tmp_path: Path) -> None:
    whole = engine_of(model_of("qwen3"), kind)
    whole.step(microbatches())
    torch.save(whole.optimizer.state_dict(), tmp_path / "state.pt")
    resumed = engine_of(copy.deepcopy(whole.model), kind)
    resumed.optimizer.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
    for engine in (whole, resumed):
        engine.step(microbatches())
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_step_waits_for_the_device_once(kind: str) -> None:
    engine = engine_of(model_of("qwen3"), kind)
    engine.step(microbatches())
    given = microbatches()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.step(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compiled_steps_equal_eager_ones(name: str) -> None:
    eager = model_of(name)
    one, other = engine_of(eager, "adamw"), engine_of(copy.deepcopy(eager), "adamw")
    other.compile()
    for _ in range(3):
        found, expected = other.step(microbatches()), one.step(microbatches())
        # bfloat16 keeps 8 bits, and a compiler rounds less often.
        assert found.loss == pytest.approx(expected.loss, rel=2e-3)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=2e-2)


def test_read_ahead_copies_what_was_read() -> None:
    class Ramp:
        num_tokens = 5000

        def read(self, start: int, count: int) -> np.ndarray:
            return np.arange(start, start + count)

    batches = Batches(Ramp(), 16, 6, seed=0)
    ahead = ReadAhead(batches, part=0, num_parts=1)
    for index in range(5):
        for found, expected in zip(ahead.batch(index, "cuda"), batches.batch(index), strict=True):
            assert torch.equal(found.cpu(), expected)
