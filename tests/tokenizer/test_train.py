"""`fledge tokenizer train`, through the command line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fledge.__main__ import run
from fledge.data.sources import expand
from fledge.errors import DataError
from fledge.tokens import TextTokenizer
from tokenizer.train import share_to_take


def train(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, the `--json` object (empty if it failed) and what was said on stderr."""
    code = run(["tokenizer", "train", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1]) if code == 0 else {}
    return code, result, captured.err


@pytest.fixture
def text_file(tmp_path: Path, corpus: list[str]) -> Path:
    file = tmp_path / "text.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in corpus).encode()))
    return file


def test_a_run_holds_a_loadable_tokenizer(
    tmp_path: Path, text_file: Path, corpus: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, _ = train(capsys, "--input", text_file, "--vocab-size", 400, "--out", tmp_path / "tok")
    assert code == 0
    tokenizer = TextTokenizer.from_folder(tmp_path / "tok")
    assert tokenizer.vocab_size == result["vocab_size"] == 400
    assert result["documents"] == 60
    assert result["bytes"] == sum(len(text.encode()) for text in corpus)
    assert tokenizer.chat_template
    lineage = json.loads((tmp_path / "tok/lineage.json").read_text())
    assert lineage["tokenizer"] == tokenizer.fingerprint
    assert lineage["data"][0]["source"] == str(text_file)
    assert "vocabulary: 400" in (tmp_path / "tok/summary.md").read_text()


def test_the_same_input_gives_the_same_files(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        train(capsys, "--input", text_file, "--vocab-size", 300, "--out", tmp_path / name)
    first, second = ((tmp_path / name / "tokenizer/tokenizer.json").read_bytes() for name in "ab")
    assert first == second


def test_a_sample_takes_evenly_from_all_inputs(
    tmp_path: Path, corpus: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"a": 60, "b": 30}
    for name, repeats in sizes.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{n} {''.join(corpus)}" for n in range(repeats)))
    share = share_to_take(expand([tmp_path / "a.txt", tmp_path / "b.txt"]), 1e6)
    total = sum((tmp_path / f"{name}.txt").stat().st_size for name in sizes)
    assert share == pytest.approx(1e6 / total)
    _, result, _ = train(
        capsys, "--input", tmp_path / "a.txt", "--input", tmp_path / "b.txt",
        "--vocab-size", 300, "--sample-megabytes", 1, "--out", tmp_path / "tok",
    )  # fmt: skip
    assert result["bytes"] == pytest.approx(1e6, rel=0.2)
    assert result["documents"] == 2


def test_a_source_of_unknown_size_leaves_room_for_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.txt").write_text("\u20ac" * 40_000)
    _, result, _ = train(
        capsys, "--input", "village:hamlet/stories#2000", "--input", tmp_path / "last.txt",
        "--vocab-size", 300, "--sample-megabytes", 0.1, "--out", tmp_path / "tok",
    )  # fmt: skip
    assert len(TextTokenizer.from_folder(tmp_path / "tok/tokenizer").encode("\u20ac" * 8)) < 8
    assert result["bytes"] < 0.2e6


def test_the_village_is_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result, _ = train(
        capsys, "--input", "village:hamlet/stories#200", "--vocab-size", 300, "--out", tmp_path / "tok"
    )
    assert (code, result["documents"]) == (0, 200)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("a little text\n", ["--vocab-size", 4000], "--vocab-size 4000: the text allows only"),
        ("a little text\n", ["--vocab-size", 100], "--vocab-size 100: needs at least 261"),
        (" \n \n", [], "no text to learn from"),
        ("", [], "empty file"),
    ],
)
def test_unfit_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, arguments: list[object], message: str
) -> None:
    (tmp_path / "a.txt").write_text(content)
    code, _, said = train(capsys, "--input", tmp_path / "a.txt", *arguments, "--out", tmp_path / "tok")
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "tok/tokenizer").exists()


def test_input_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = train(capsys)
    assert code == 1
    assert "--input" in said


def test_shares_of_unknown_sizes_are_whole() -> None:
    assert share_to_take(expand(["village:hamlet/stories"]), 10) == 1.0
    with pytest.raises(DataError):
        expand(["village:nowhere/stories"])
