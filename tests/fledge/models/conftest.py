"""Small random models of ours beside transformers' own class with the same weights; a byte tokenizer."""

from typing import Any

import pytest
import tokenizers
import torch

from fledge.models.architecture import LanguageModel, build, find_config
from fledge.tokens import END_OF_TEXT, TextTokenizer, byte_alphabet

# Each entry is a config.json; together they cover what the three architectures can do.
HF_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 101, "n_positions": 48, "n_embd": 48, "n_layer": 2, "n_head": 4},
    "gpt2-untied": {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_positions": 48,
        "n_embd": 24,
        "n_layer": 3,
        "n_head": 2,
        "n_inner": 40,
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-3,
        "activation_function": "gelu_pytorch_tanh",
    },
    "qwen3": {
        "model_type": "qwen3",
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 48,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
    "qwen3-tied": {
        "model_type": "qwen3",
        "vocab_size": 70,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 48,
        "tie_word_embeddings": True,
        "rope_theta": 300.0,
    },
    "nanochat": {
        "model_type": "nanochat",
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 48,
        "final_logit_softcapping": 2.0,
    },
    "nanochat-tied": {
        "model_type": "nanochat",
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 48,
        "tie_word_embeddings": True,
        "final_logit_softcapping": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
}


def randomised(model: Any, seed: int = 0) -> Any:
    """Weights that exercise everything: none is zero, one, or small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """One token a byte, and an end-of-text token."""
    vocabulary = {character: byte for byte, character in byte_alphabet().items()}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([END_OF_TEXT])
    return TextTokenizer(inner)


@pytest.fixture(params=HF_CONFIGS)
def hf_content(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(HF_CONFIGS[request.param])


@pytest.fixture(params=["gpt2", "qwen3", "nanochat"])
def ours(request: pytest.FixtureRequest) -> LanguageModel:
    """One small random model of each architecture, in evaluation mode."""
    content = HF_CONFIGS[request.param]
    return randomised(build(find_config(request.param).from_hf(content))).eval()


@pytest.fixture
def theirs(hf_content: dict[str, Any]) -> Any:
    """transformers' model of a config with random weights, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf_content))
    return randomised(model).eval()
