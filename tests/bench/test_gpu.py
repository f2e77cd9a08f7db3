"""The GPU's benchmark goes through all of its parts on a CPU; its numbers are not looked at there."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.gpu import main

SIDES = ["ours", "transformers", "ours, ZeRO 1"]


def measured(out: Path, *options: str) -> dict[str, object]:
    result = CliRunner().invoke(main, ["--out", str(out), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return dict(json.loads((out / "gpu.json").read_text()))


@pytest.mark.filterwarnings("ignore")  # DeepSpeed's and the profiler's own
def test_tiny_measures_every_part_and_writes_json_and_table(tmp_path: Path) -> None:
    content = measured(tmp_path, "--tiny")
    names = {row["name"] for row in content["rows"]}  # type: ignore[attr-defined]
    assert {f"training, {side}" for side in SIDES} | {"PPO", "generation, 4 rows", "matmul peak"} <= names
    assert "training, share of the measured peak" in names
    assert set(content["errors"]) == {"nanogpt"}  # type: ignore[call-overload]
    assert "| matmul peak" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a part that fails")
def test_a_part_that_fails_is_recorded_and_costs_no_other(tmp_path: Path) -> None:
    content = measured(tmp_path, "--only", "matmul,nanogpt")
    assert list(content["errors"]) == ["matmul", "nanogpt"]  # type: ignore[call-overload]
    assert "CUDA" in content["errors"]["matmul"]  # type: ignore[index]
    assert "FLEDGE_NANOGPT" in content["errors"]["nanogpt"]  # type: ignore[index]
