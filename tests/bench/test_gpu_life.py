"""The GPU's real life on a CPU: data packed and unpacked, stopped in the middle, gone on with, to the report."""

import gzip
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from bench import gpu_life
from fledge.errors import DataError
from fledge.village import spec


def data_folder(folder: Path) -> Path:
    """All sets that must travel, small: the village's where --tiny reads them, two letters elsewhere."""
    stories = [row["text"] for row in islice(spec.rows("village:hamlet"), 400)]
    pairs = list(islice(spec.rows("village:hamlet/preferences"), 120))
    asked = [{"instruction": p["prompt"], "input": "", "output": p["chosen"]} for p in pairs]
    told = [{"prompt": p["prompt"], "chosen": p["chosen"], "rejected": p["rejected"]} for p in pairs]
    sets = {
        gpu_life.TINY_TEXT[0]: "\n".join(stories),
        gpu_life.TINY_INSTRUCTIONS[0]: json.dumps(asked),
        gpu_life.TINY_PAIRS: json.dumps(told),
    }
    others = [gpu_life.VALIDATION, *gpu_life.TEXT, *gpu_life.INSTRUCTIONS, gpu_life.PAIRS]
    books = [f"classic_books/train-{n:02}.jsonl.gz" for n in range(3)]
    for name in [*others, *books, "blimp/one.jsonl.gz"]:
        sets.setdefault(name, json.dumps({"text": f"{name} and so on"}))
    for name, text in sets.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def test_what_is_packed_is_unpacked_as_it_was_under_the_same_names(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    gpu_life.pack(data, tmp_path / "packed", limit_mib=1)
    again = gpu_life.unpacked(tmp_path / "packed", tmp_path / "out")
    for file in data.rglob("*.*"):
        other = again / file.relative_to(data)
        read = gzip.decompress if file.suffix == ".gz" else bytes
        assert read(other.read_bytes()) == read(file.read_bytes())
    assert gpu_life.unpacked(data, tmp_path / "out") == data  # nothing to unpack


def test_too_small_a_limit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--limit-mib 0.0001: too few for what must travel; .* is left over"):
        gpu_life.pack(data_folder(tmp_path / "data"), tmp_path / "packed", limit_mib=0.0001)


@pytest.mark.slow
def test_a_life_that_is_stopped_goes_on_to_its_report(tmp_path: Path) -> None:
    data, out = data_folder(tmp_path / "data"), tmp_path / "out"

    def live(*options: str) -> int:
        command = [sys.executable, "-m", "bench.gpu_life", "run", str(data), str(out), "--tiny", *options]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert live("--minutes", "0.2") == 130
    assert not (out / "report.html").exists()
    assert live() == 0
    assert (out / "report.html").is_file()
