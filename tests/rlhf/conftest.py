"""Small random models of two architectures with a tokenizer and our chat template, and a random reward model."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from fledge.models import architecture, folder
from fledge.tokens import TextTokenizer, default_chat_template
from fledge.village.stories import stories
from fledge.village.world import make_world
from tokenizer.learn import learn


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """A byte-pair tokenizer of 400 tokens."""
    return TextTokenizer(learn("bpe", islice(stories(make_world()), 200), 400), None, default_chat_template())


def _random(kind: str, tokenizer: TextTokenizer, path: Path) -> Path:
    shape = architecture.find_config(kind).sized(
        vocab_size=tokenizer.vocab_size,
        context=64,
        layers=2,
        width=32,
        heads=2,
        bos_id=0,
        eos_id=0,
        pad_id=tokenizer.special_ids["<|pad|>"],
    )
    folder.save_model(architecture.build(shape, 0), path)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def qwen3(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained qwen3 folder."""
    return _random("qwen3", tokenizer, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def gpt2(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained gpt2 folder."""
    return _random("gpt2", tokenizer, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def judge(qwen3: Path, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with random opinions."""
    from transformers import AutoModelForSequenceClassification

    path = tmp_path_factory.mktemp("judge") / "model"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(qwen3, num_labels=1).save_pretrained(path)
    tokenizer.save(path)
    return path


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Training sets the number of threads of this process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
