"""`fledge.load`: text in, text out, for folders of any kind and for untrained shapes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge import load
from fledge.errors import ConfigError, DataError, ModelError
from fledge.models.architecture import LanguageModel, build, find_config
from fledge.models.folder import save_model
from fledge.models.generation import Sampling, continue_texts
from fledge.models.loaded import LoadedModel
from fledge.tokens import TextTokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> Path:
    """A run folder with a small untrained model."""
    run = tmp_path_factory.mktemp("base")
    (run / "model").mkdir()
    config = find_config("qwen3").sized(vocab_size=257, context=40, layers=2, width=32, heads=2)
    save_model(build(config, seed=1), run / "model")
    tokenizer.save(run / "model")
    return run


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedModel:
    return load(run, device="cpu")


def test_generate_gives_the_text_after_the_prompt(loaded: LoadedModel) -> None:
    text = loaded.generate("Once", max_new_tokens=10, seed=3)
    sampling = Sampling(max_new_tokens=10, seed=3)
    assert isinstance(text, str)
    assert [text] == continue_texts(loaded.model, loaded.tokenizer, ["Once"], sampling)
    assert loaded.generate(["Once", "On"], max_new_tokens=10, seed=3)[0] == text


def test_max_length_counts_the_prompt(loaded: LoadedModel) -> None:
    by_length = loaded.generate(["abcd", "abcdefgh", "abcd"], max_length=14, temperature=0.5)
    by_new = [
        loaded.generate(["abcd"] * 2, max_new_tokens=10, temperature=0.5),
        loaded.generate("abcdefgh", max_new_tokens=6, temperature=0.5),
    ]
    assert by_length == [by_new[0][0], by_new[1], by_new[0][1]]
    with pytest.raises(DataError, match="4 tokens leaves no room within max_length 4"):
        loaded.generate("abcd", max_length=4)


def test_stop_strings_and_long_prompts_are_taken_care_of(loaded: LoadedModel) -> None:
    free = loaded.generate("a" * 90, max_new_tokens=12, temperature=0)
    assert (
        loaded.generate("a" * 90, max_new_tokens=12, temperature=0, stop_strings=[free[3]])
        == free[: free.index(free[3])]
    )
    lone = loaded.generate("a" * 90, max_new_tokens=12, temperature=0, stop_strings=free[2:4])
    assert lone == free[: free.index(free[2:4])]
    (stop,) = loaded.tokenizer.encode(free[3])
    assert (
        loaded.generate("a" * 90, max_new_tokens=12, temperature=0, stop_ids=stop)[:4]
        == free[: free.index(free[3]) + 1]
    )


def test_logits_are_those_of_the_model_for_lists_and_tensors(loaded: LoadedModel) -> None:
    ids = [[1, 2, 3], [4, 5, 6]]
    expected = loaded.model(torch.tensor(ids))
    assert loaded.logits(ids).dtype == torch.float32
    assert torch.equal(loaded.logits(ids), expected)
    assert torch.equal(loaded.logits(torch.tensor(ids)), expected)
    assert torch.equal(loaded.logits([1, 2, 3]), loaded.logits([[1, 2, 3]]))


def test_other_types_are_used_through_transformers(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    model = load(tmp_path, device="cpu")
    assert isinstance(model.model, LlamaForCausalLM)
    assert model.logits([1, 2]).shape == (1, 2, 257)
    assert len(model.generate(["a", "bcd"], max_new_tokens=4)) == 2


def test_untrained_gpt2_has_its_published_shape(tokenizer: TextTokenizer) -> None:
    model = load("distilgpt2", random_weights=True, tokenizer=tokenizer, device="cpu")
    assert isinstance(model.model, LanguageModel)
    assert model.model.num_parameters() == 81_912_576 - (50257 - 257) * 768  # 82 M with GPT-2's vocabulary
    assert model.model.config.eos_id == tokenizer.end_of_text_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "gpt2", "random_weights": True}, "random weights need a tokenizer"),
        ({"path": "runs/nothing-here"}, "no such folder"),
    ],
)
def test_what_is_missing_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(**arguments)


def test_shapes_that_are_not_known_are_listed(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ModelError, match="known: gpt2, gpt2-medium"):
        load("gpt5", random_weights=True, tokenizer=tokenizer)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    save_model(build(find_config("gpt2").sized(vocab_size=99, context=8, layers=1, width=8, heads=1)), tmp_path)
    with pytest.raises(ModelError, match="tokenizer has 257 tokens, the model knows 99"):
        load(tmp_path, tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, "unknown setting 'do_sample'; known: max_length, max_new_tokens, temperature"),
        ({"max_new_tokens": 3, "max_length": 9}, "not both"),
        ({"top_p": 2}, "top_p is 2"),
    ],
)
def test_wrong_settings_are_named(loaded: LoadedModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded.generate("a", **settings)


def test_importing_fledge_is_light_and_our_models_need_no_transformers(run: Path) -> None:
    code = (
        "import sys, fledge; assert 'torch' not in sys.modules; from fledge import load;"
        f"load({str(run)!r}, device='cpu').generate('a', max_new_tokens=2); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_only_load_is_offered() -> None:
    import fledge

    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = fledge.lode
