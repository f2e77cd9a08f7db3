"""Bits per byte and perplexity against a plain loop by transformers on the same windows."""

import json
import lzma
import weakref
from collections.abc import Callable, Iterator
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from eval import intervals
from eval.config import TaskConfig
from eval.harness import ItemScore
from eval.items import Ratio
from eval.perplexity import Document, Window, documents, perplexity, spread, windows
from eval.subject import Subject
from eval.tasks.perplexity import measure
from fledge.__main__ import run
from fledge.tokens import TextTokenizer
from fledge.village.stories import stories
from fledge.village.world import make_world
from tokenizer.learn import learn

TEXTS = [*stories(make_world(), 0, 3), "caf\u00e9 \u4f60\u597d \U0001f600 <|endoftext|>", "x"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return file


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["eval", "run", *arguments, "--device=cpu", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_numbers_equal_a_plain_loop_by_transformers(
    any_model: Path, subject: Subject, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(any_model)
    nats, num_tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([subject.tokenizer.end_of_text_id, *subject.tokenizer.encode(text)])
        for start in range(0, len(ids) - 1, 64):
            # The last window reaches back to the model's whole context.
            begin = max(0, min(start, len(ids) - 1 - 64))
            piece = ids[begin : start + 65]
            with torch.no_grad():
                logits = model(piece[None, :-1]).logits[0, start - begin :]
            nats += float(torch.nn.functional.cross_entropy(logits, ids[start + 1 : start + 65], reduction="sum"))
        num_tokens += len(ids) - 1
    found = measured(capsys, str(any_model), "--task=perplexity", "--data", str(text_file))["results"]["perplexity"]
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / log(2) / num_bytes, rel=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(exp(nats / num_tokens), rel=1e-4)


@pytest.mark.parametrize(("context", "stride"), [(8, 0), (8, 8), (8, 3), (8, 1), (40, 0)])
def test_every_token_is_scored_once_and_sees_what_the_stride_leaves(context: int, stride: int) -> None:
    ids = np.arange(30)
    found = [window.tokens for window in windows(Document("d", b"", ids, ids, True), context, stride)]
    assert [i for tokens in found for i in tokens.ids[tokens.start :]] == list(range(1, 30))
    for tokens in found[1:]:
        assert len(tokens.ids) - 1 == context
        assert tokens.start >= context - (stride or context) + 1
    assert all(list(tokens.ids) == list(range(tokens.ids[0], tokens.ids[-1] + 1)) for tokens in found)


def test_a_limited_number_is_spread_evenly() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, None) == spread(3, 9) == [0, 1, 2]
    assert spread(0, 4) == []


def test_windows_that_are_not_scored_are_not_kept(
    subject: Subject, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Window]] = []
    alive: list[int] = []

    def watched(*arguments: Any) -> Iterator[Window]:
        for window in windows(*arguments):
            alive.append(sum(one() is not None for one in made))
            made.append(weakref.ref(window))
            yield window

    monkeypatch.setattr("eval.perplexity.windows", watched)
    found = measure(subject, TaskConfig(kind="perplexity", data=[str(text_file)]), 2)
    assert (len(found.items), max(alive)) == (2, 3)  # those that are scored, and the one in hand


def test_a_text_file_is_one_document(subject: Subject, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(TEXTS[:2]), encoding="utf-8")
    (document,) = documents([str(text)], subject.tokenizer)
    assert document.ids.tolist() == [0, *subject.tokenizer.encode("\n\n".join(TEXTS[:2]))]


def test_each_byte_counts_where_its_token_is(subject: Subject, text_file: Path) -> None:
    table = subject.tokenizer.token_bytes()
    for text, document in zip(TEXTS, documents([str(text_file)], subject.tokenizer), strict=True):
        assert document.bytes_N.tolist() == [len(table[i]) for i in document.ids.tolist()]
        assert document.bytes_N.sum() == len(text.encode())
        assert b"".join(window.text for window in windows(document, 8, 3)) == text.encode()


def test_the_bytes_are_the_texts_where_the_tokens_have_others() -> None:
    # A space before the text, of no bytes of its own; \u4f60\u597d, 3 bytes each, is unknown, and one token.
    inner = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("\u2581", -1.0), ("a", -1.0)], 0))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    inner.add_special_tokens(["<unk>", "</s>"])
    tokenizer = TextTokenizer(inner, {"eos_token": "</s>"})
    document = Document.of("d", ["aa a", "a\u4f60\u597da"], tokenizer)
    assert document.ids.tolist() == [1, 2, 3, 3, 2, 3, 2, 3, 0, 3]
    assert document.bytes_N.tolist() == [0, 1, 0, 1, 1, 1, 1, 0, 6, 1]
    assert not document.is_kept
    assert Document.of("d", ["aa a", "aa"], tokenizer).is_kept


def test_a_tokenizer_that_loses_text_is_told(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = learn("bpe", TEXTS[:3], 300)
    inner.normalizer = normalizers.Lowercase()
    model = make_model(tmp_path / "model", TextTokenizer(inner))
    for number, text in enumerate(("as it is", "Not As It Is")):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    assert run(["eval", "run", str(model), "--task=perplexity", "--data", str(tmp_path / "*.txt")]) == 0
    assert "the tokenizer does not give 1 of 2 documents back as they are" in capsys.readouterr().err


def test_the_compressed_baseline_is_of_the_documents_that_were_scored(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("a", "to and fro "), ("b", "quiz, vow; jump")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    found = measured(capsys, str(model_folder), "--task=perplexity", "--data", str(tmp_path / "*.txt"), "--limit=1")
    baseline = found["results"]["perplexity"]["bits_per_byte"]["baseline"]
    assert baseline == pytest.approx(8 * len(lzma.compress(b"to and fro ", preset=9)) / 11)


def test_perplexity_without_text_is_an_error(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "run", str(model_folder), "--task", "perplexity"]) == 1
    assert "perplexity needs text: give --data PATHS" in capsys.readouterr().err


def test_an_interval_that_is_wider_than_numbers_are_is_unknown() -> None:
    items = [ItemScore(name, "", "", {"nats_per_token": Ratio(nats, 1.0)}) for name, nats in (("a", 1.0), ("b", 200.0))]
    found = intervals.as_json(perplexity(items))
    assert (found["low"], found["high"]) == (None, None)
    assert found["value"] == pytest.approx(exp(100.5))
