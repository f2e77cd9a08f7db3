"""Small models with a tokenizer, made once."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from eval.subject import Subject
from fledge.models.architecture import build, find_config
from fledge.models.folder import save_model
from fledge.tokens import TextTokenizer, default_chat_template
from fledge.village.stories import stories
from fledge.village.world import make_world
from tokenizer.learn import learn


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """A byte-pair tokenizer of 300 tokens."""
    return TextTokenizer(learn("bpe", islice(stories(make_world()), 200), 300), None, default_chat_template())


def write_model(folder: Path, tokenizer: TextTokenizer, architecture: str = "qwen3", context: int = 64) -> Path:
    """A folder with a random model whose predictions are far from uniform."""
    config = find_config(architecture).sized(
        vocab_size=tokenizer.vocab_size, context=context, layers=2, width=32, heads=2, eos_id=0, pad_id=3
    )
    model = build(config, seed=1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "position" not in name:
            parameter.data *= 6  # random weights as drawn say nearly the same of every text
    folder.mkdir(parents=True)
    save_model(model, folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """The function `write_model`."""
    return write_model


@pytest.fixture(scope="session", params=["qwen3", "gpt2", "nanochat"])
def any_model(
    request: pytest.FixtureRequest, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model folder of each architecture of ours."""
    return write_model(tmp_path_factory.mktemp("models") / request.param, tokenizer, request.param)


@pytest.fixture(scope="session")
def model_folder(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen3 folder."""
    return write_model(tmp_path_factory.mktemp("model") / "small", tokenizer)


@pytest.fixture(scope="session")
def subject(model_folder: Path) -> Subject:
    """The model in `model_folder`, loaded."""
    return Subject.open(str(model_folder), "cpu")
