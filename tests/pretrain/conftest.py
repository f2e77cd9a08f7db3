"""A small tokenizer and token shards, made once."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fledge.tokens import TextTokenizer, default_chat_template
from fledge.village.stories import stories
from fledge.village.world import make_world
from tokenizer import shards
from tokenizer.learn import learn


def write_shards(folder: Path, tokenizer: TextTokenizer, texts: dict[str, list[str]], source: str = "here.txt") -> Path:
    """Shards of some texts, as `pretrain prepare` leaves them."""
    folder.mkdir(parents=True)
    tokenizer.save(folder)
    with shards.writers_in(folder, tokenizer) as writers:
        for split in shards.SPLITS:
            for text in texts[split]:
                writers[split].append(np.array(tokenizer.encode(text)), len(text.encode()))
        shards.write_index(folder, tokenizer, writers, {"sources": [source]})
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """A byte-pair tokenizer of 300 tokens."""
    return TextTokenizer(learn("bpe", islice(stories(make_world()), 200), 300), None, default_chat_template())


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Path]:
    """The function `write_shards`, for tests that need shards of their own."""
    return write_shards


@pytest.fixture(scope="session")
def story_shards(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 200 hamlet stories, and 10 others to validate on."""
    world = make_world()
    texts = {"train": list(stories(world, 0, 200)), "validation": list(stories(world, 1000, 10))}
    return write_shards(tmp_path_factory.mktemp("data") / "shards", tokenizer, texts, "village:hamlet/stories")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Training sets the number of threads of this process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
