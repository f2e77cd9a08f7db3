"""What `auto` and bfloat16 mean on this machine."""

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
