"""`fledge tokenizer compare`: the numbers against a plain count."""

import json
from pathlib import Path

import pytest

from fledge.__main__ import run
from fledge.tokens import TextTokenizer
from tokenizer.learn import learn


def test_bytes_per_token_and_unused_tokens_are_right(
    tmp_path: Path, small_tokenizer: TextTokenizer, corpus: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = TextTokenizer(learn("bpe", iter(corpus), 261))
    small_tokenizer.save(tmp_path / "small")
    other.save(tmp_path / "bytes")
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(corpus[number], encoding="utf-8")
    arguments = ["--input", str(tmp_path / "0.txt"), "--input", str(tmp_path / "1.txt"), "--json"]
    names = [str(tmp_path / name) for name in ("small", "bytes", "small")]  # one that is named twice stands once
    assert run(["tokenizer", "compare", *names, *arguments]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    size = sum(len(text.encode()) for text in corpus[:2])
    ids = [small_tokenizer.encode(text) for text in corpus[:2]]
    small, single = result["tokenizers"].values()
    assert result["bytes"] == size
    assert single["bytes_per_token"] == 1.0
    assert small["bytes_per_token"] == pytest.approx(size / sum(map(len, ids)))
    assert small["unused"] == 395 - len({number for row in ids for number in row})
    assert single["not_lossless"] == []
    assert "exact on every document" in out


def test_a_lossy_tokenizer_is_named(tmp_path: Path, corpus: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import normalizers

    inner = learn("bpe", iter(corpus), 300)
    inner.normalizer = normalizers.Lowercase()
    TextTokenizer(inner).save(tmp_path / "lower")
    (tmp_path / "a.txt").write_text("Upper and lower")
    assert run(["tokenizer", "compare", str(tmp_path / "lower"), "--input", str(tmp_path / "a.txt")]) == 0
    assert "1 documents differ, first" in capsys.readouterr().out


def test_of_many_sources_the_first_are_shown(
    tmp_path: Path, small_tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    small_tokenizer.save(tmp_path / "small")
    for number in range(25):
        (tmp_path / f"{number:02}.txt").write_text("Anna has a dog.")
    assert run(["tokenizer", "compare", str(tmp_path / "small"), "--input", str(tmp_path / "*.txt")]) == 0
    out = capsys.readouterr().out
    assert out.count(".txt") == 20
    assert "The first 20 of 25 sources are shown." in out
    assert f"{25 * 15}" in out  # the sum is that of all
