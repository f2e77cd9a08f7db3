"""What `auto` and bfloat16 mean on this machine."""

import os

import pytest
import torch

from fledge import device


def test_auto_is_float32_on_a_cpu() -> None:
    assert device.resolve_dtype("auto", "cpu") == "float32"
    assert device.resolve_dtype("auto", "cuda") == "bfloat16"


def test_a_cpu_without_bfloat16_gets_float32_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert device.resolve_dtype("bfloat16", "cpu") == "float32"
    assert "this CPU has no bfloat16 arithmetic; float32 is used" in capsys.readouterr().err
    assert device.resolve_dtype("bfloat16", "cuda") == "bfloat16"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
    ],
)
def test_the_nominal_peak_is_that_of_the_gpu_and_not_of_one_named_alike(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert device.nominal_peak("cuda") == peak


def test_cores_are_those_that_a_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= device.usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # what joblib counts beside affinity and the cgroup's quota
    assert device.usable_cores() == 1
