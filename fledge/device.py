"""Devices, number formats, threads, and the machine's measured matmul peak."""

import re
import time
from typing import TYPE_CHECKING, Any

from fledge import console, processes
from fledge.config import RunConfig
from fledge.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Dense bf16 tensor-core peaks in FLOP/s, from NVIDIA's data sheets (without sparsity).
NOMINAL_PEAK = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def resolve_device(name: str, option: str = "--run.device") -> str:
    """The device that `auto|cpu|cuda|mps` means on this machine.

    Raises:
        ConfigError: the device asked for is not there; nothing falls back silently.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        raise ConfigError(f"{option} {name}: this machine has none (see `fledge doctor`)")
    return name


def resolve_dtype(name: str, device: str) -> str:
    """The number format of the forward pass that `auto|float32|bfloat16` means on a device.

    A CPU without bfloat16 arithmetic gets float32, and is told: it would be several times slower, not faster.
    """
    if name == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    if name == "bfloat16" and device == "cpu" and not _cpu_has_bfloat16():
        console.warn("this CPU has no bfloat16 arithmetic; float32 is used")
        return "float32"
    return name


def plain_values(run: RunConfig) -> dict[str, Any]:
    """What `auto` and 0 threads of the group `run` stand for on this machine, by dotted name."""
    chosen = resolve_device(run.device)
    return {
        "run.device": chosen,
        "run.dtype": resolve_dtype(run.dtype, chosen),
        "run.threads": run.threads or max(1, usable_cores() // processes.num_local()),
    }


def _cpu_has_bfloat16() -> bool:
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def torch_dtype(name: str) -> "torch.dtype":
    """torch's dtype of a name in a config."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def usable_cores() -> int:
    """Physical cores that this process may use; a container's share of them counts, too."""
    import psutil
    from joblib import cpu_count

    allowed = cpu_count()
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def matmul_peak(device: str, dtype: str) -> float:
    """FLOP/s of a large square matrix product, the best of several tries; what MFU is a share of."""
    import torch

    from fledge.models.linear import linear

    size = 1024 if device == "cpu" else 8192
    # Random, as a GPU multiplies regular numbers faster; by a generator of its own, as dropout draws from the other.
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(size, size, generator=generator, device=device).to(torch_dtype(dtype))

    def once() -> float:
        started = time.perf_counter()
        linear(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()
        elif device == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - started

    once()
    best, stop = once(), time.perf_counter() + 0.3
    while time.perf_counter() < stop:
        best = min(best, once())
    return 2 * size**3 / best


def nominal_peak(device: str) -> float | None:
    """The data sheet's dense bf16 FLOP/s of the GPU in use; None where it isn't known."""
    import torch

    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    # As a word: an L40S is no L4.
    return next((peak for key, peak in NOMINAL_PEAK.items() if re.search(rf"\b{key}\b", name)), None)
