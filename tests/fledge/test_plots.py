"""Plots: what stands in them is what the data says."""

from pathlib import Path

import pytest

from fledge import plots


@pytest.mark.parametrize("labels", [["$0_$50", "$50_$100"], ["$10-$20", "under $10"]])
def test_dollar_signs_in_labels_make_no_formula(tmp_path: Path, labels: list[str]) -> None:
    plots.confusion_matrix([[3, 1], [0, 4]], labels, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
