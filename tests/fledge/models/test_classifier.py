"""Classifiers in Hugging Face folders, against transformers' own pipeline."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fledge.errors import ModelError
from fledge.models import architecture, classifier, folder
from fledge.models.classifier import by_length
from fledge.tokens import TextTokenizer, default_chat_template
from tokenizer.learn import learn

TEXTS = ["Hello there.", "a", "The miller has a dog and the dog has a long, long tail " * 3, "", "Win 100 now!"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(learn("bpe", TEXTS * 20, 280), None, default_chat_template())


@pytest.fixture(scope="module")
def base(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes the folder of an untrained model of an architecture, with a token for padding or none."""

    def make(kind: str, pads: bool = True) -> Path:
        path = tmp_path_factory.mktemp(kind)
        shape = architecture.find_config(kind).sized(
            vocab_size=tokenizer.vocab_size, context=64, layers=2, width=32, heads=2,
            bos_id=0, eos_id=0, pad_id=tokenizer.special_ids["<|pad|>"] if pads else None,
        )  # fmt: skip
        folder.save_model(architecture.build(shape, 0), path)
        roles = tokenizer.roles if pads else {"eos_token": tokenizer.roles["eos_token"]}
        TextTokenizer(tokenizer.inner, roles, tokenizer.chat_template).save(path)
        return path

    return make


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_padding_and_batch_order_change_no_prediction(base: Callable[..., Path], kind: str) -> None:
    torch.manual_seed(0)
    made = classifier.from_base(base(kind), ["ham", "spam"])
    texts = [(text, None) for text in TEXTS]
    together = np.stack(list(made.probabilities(texts)))
    reversed_order = np.stack(list(made.probabilities(texts[::-1])))[::-1]
    alone = np.stack([next(made.probabilities([text], batch_tokens=1)) for text in texts])
    assert np.ptp(together[:, 0]) > 1e-3  # the texts do differ
    np.testing.assert_allclose(together, alone, atol=1e-6)  # float32
    np.testing.assert_allclose(together, reversed_order, atol=1e-6)


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_the_saved_folder_gives_the_same_in_transformers_pipeline(
    base: Callable[..., Path], tmp_path: Path, kind: str, pads: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = classifier.from_base(base(kind, pads), ["ham", "spam", "other"])
    made.save(tmp_path)
    texts = [text for text in TEXTS if text]
    before = np.stack(list(made.probabilities([(text, None) for text in texts])))
    pipe = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None, batch_size=3)
    found = pipe(texts, truncation=True, max_length=64)
    ours = np.stack(list(classifier.load(tmp_path).probabilities([(text, None) for text in texts])))
    theirs = [[{s["label"]: s["score"] for s in row}[name] for name in made.labels] for row in found]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(ours, before, atol=1e-6)


def test_texts_are_framed_by_document_ends_and_never_make_special_ids(
    base: Callable[..., Path], tokenizer: TextTokenizer
) -> None:
    made = classifier.from_base(base("qwen3"), ["a", "b"])
    end = tokenizer.end_of_text_id
    (single, pair, typed) = made.encoder.encode([("Hello", None), ("Hello", "there"), ("<|pad|>", None)])
    assert single == [end, *tokenizer.encode("Hello"), end]
    assert pair == [end, *tokenizer.encode("Hello"), end, *tokenizer.encode("there"), end]
    assert made.pad_id not in typed


def test_texts_longer_than_the_context_are_cut_and_counted(base: Callable[..., Path]) -> None:
    made = classifier.from_base(base("qwen3"), ["a", "b"])
    ids = made.encoder.encode([("word " * 200, None), ("word", None)])
    assert len(ids[0]) == 64
    assert made.encoder.num_cut == 1


def test_a_batch_holds_no_more_tokens_than_allowed() -> None:
    lengths = [3, 9, 4, 4, 20, 1]
    batches = list(by_length(lengths, 12))
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 12 or len(batch) == 1 for batch in batches)


def test_damaged_weights_give_no_labels(base: Callable[..., Path]) -> None:
    made = classifier.from_base(base("gpt2"), ["ham", "spam"])
    made.model.score.weight.data[1, 0] = np.nan
    with pytest.raises(ModelError, match="gives NaN or infinity: its weights are damaged; copy it"):
        list(made.probabilities([("hello", None)]))


def test_a_causal_folder_is_no_classifier(base: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"holds a Qwen3ForCausalLM, not a classifier; make one with `fledge"):
        classifier.load(base("qwen3"))


def test_an_architecture_without_classifier_is_refused(base: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="transformers has no text classifier of the type nanochat"):
        classifier.from_base(base("nanochat"), ["a", "b"])


def test_a_classifier_may_have_a_body_with_a_head_of_its_own(
    tokenizer: TextTokenizer, base: Callable[..., Path], tmp_path: Path
) -> None:
    shape = dataclasses.replace(folder.load_model(base("qwen3")).config, tie_embeddings=False)
    for name in ("base", "made"):
        (tmp_path / name).mkdir()
    folder.save_model(architecture.build(shape, 0), tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    made = classifier.from_base(tmp_path / "base", ["ham", "spam"])
    made.save(tmp_path / "made")
    ids = [tokenizer.encode("Hello there.")]
    np.testing.assert_allclose(classifier.load(tmp_path / "made").logits(ids), made.logits(ids), atol=1e-6)


def test_labels_are_named_by_their_numbers_and_not_by_their_order(base: Callable[..., Path], tmp_path: Path) -> None:
    classifier.from_base(base("qwen3"), ["ham", "spam"]).save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"id2label": {"1": "spam", "0": "ham"}}))
    assert classifier.load(tmp_path).labels == ["ham", "spam"]


def test_labels_that_transformers_does_not_write_are_known(base: Callable[..., Path], tmp_path: Path) -> None:
    classifier.from_base(base("qwen3"), ["LABEL_0", "LABEL_1"]).save(tmp_path)
    assert classifier.load(tmp_path).labels == ["LABEL_0", "LABEL_1"]


def test_a_body_that_ours_lacks_is_asked_through_transformers(base: Callable[..., Path], tmp_path: Path) -> None:
    made = classifier.from_base(base("gpt2"), ["a", "b"])
    made.model.config.activation_function = "gelu"
    made.save(tmp_path)
    assert type(classifier.load(tmp_path).model).__name__ == "GPT2ForSequenceClassification"
