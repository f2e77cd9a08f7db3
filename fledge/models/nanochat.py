"""nanochat: rotary positions, norms without weights, normed queries and keys, ReLU squared, capped logits.

Source: Karpathy's nanochat (2025) as transformers has it (NanoChatForCausalLM).
Shapes: B rows, T tokens, D width, H heads, K key-value heads, E head width.
"""

import dataclasses
import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fledge.errors import ConfigError
from fledge.models.architecture import LanguageModel, ModelConfig, refuse, unset_linear
from fledge.models.attention import attend, rms_norm, rotary_base, rotary_tables, rotate
from fledge.models.cache import KVCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """nanochat's shape; `dropout` falls on attention weights, as in transformers (its author has none)."""

    model_type: ClassVar[str] = "nanochat"
    hf_class: ClassVar[str] = "NanoChatForCausalLM"

    tie_embeddings: bool = False
    rotary_base: float = 10_000.0
    logit_softcap: float | None = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_width % 2:
            raise ConfigError(f"nanochat: head width {self.head_width} must be even: rotary positions turn pairs")

    @classmethod
    def from_hf(cls, content: dict[str, Any]) -> Self:
        """The config in nanochat's config.json, in its older and newer form; defaults are transformers'."""
        refuse(content, {"attention_bias": (False,), "hidden_act": ("relu2",)})
        width, heads = content.get("hidden_size", 768), content.get("num_attention_heads", 6)
        return cls(
            vocab_size=content.get("vocab_size", 50304),
            context=content.get("max_position_embeddings", 2048),
            layers=content.get("num_hidden_layers", 12),
            width=width,
            heads=heads,
            kv_heads=content.get("num_key_value_heads") or heads,
            head_width=content.get("head_dim") or width // heads,
            mlp_width=content.get("intermediate_size", 8192),
            dropout=content.get("attention_dropout", 0.0),
            tie_embeddings=content.get("tie_word_embeddings", False),
            norm_epsilon=content.get("rms_norm_eps", 1e-6),
            init_std=content.get("initializer_range", 0.02),
            rotary_base=rotary_base(content),
            logit_softcap=content.get("final_logit_softcapping", 15.0),
            **cls.ids_of_hf(content, bos=0, eos=1, pad=1),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of nanochat's config.json, without `dtype`."""
        return {
            "architectures": [self.hf_class],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.mlp_width,
            "hidden_act": "relu2",
            "attention_bias": False,
            "attention_dropout": self.dropout,
            "rms_norm_eps": self.norm_epsilon,
            "initializer_range": self.init_std,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rotary_base},
            "final_logit_softcapping": self.logit_softcap,
            "tie_word_embeddings": self.tie_embeddings,
            **self.hf_ids(),
        }

    def kept_bytes(self, compute: int, stream: int) -> int:
        """See `ModelConfig`; autocast norms queries and keys, and squares, in float32."""
        query, key = self.heads * self.head_width, self.kv_heads * self.head_width
        copies = stream > compute
        norms = 2 * (stream * self.width + 4) + stream * (query + key) + 4 * (self.heads + self.kv_heads)
        attention = compute * ((3 if copies else 1) * self.width + query + 2 * key + query) + 4 * self.heads
        squared = stream * self.mlp_width if copies else 0
        return norms + attention + compute * (self.width + 2 * self.mlp_width) + squared


class Attention(nn.Module):
    """Causal self-attention; queries and keys are turned by their positions and then normed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_width, self.dropout, self.epsilon = config.head_width, config.dropout, config.norm_epsilon
        self.query = unset_linear(config.width, config.heads * config.head_width, bias=False)
        self.key = unset_linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.value = unset_linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.out = unset_linear(config.heads * config.head_width, config.width, bias=False)

    def forward(
        self, x_BTD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, visible: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """What each token reads from the tokens before it."""
        per_head = (-1, self.head_width)
        query_BTHE = rotate(self.query(x_BTD).unflatten(-1, per_head), cos_T1E, sin_T1E)
        key_BTKE = rotate(self.key(x_BTD).unflatten(-1, per_head), cos_T1E, sin_T1E)
        query_BHTE = rms_norm(query_BTHE, None, self.epsilon).transpose(1, 2)
        key_BKTE = rms_norm(key_BTKE, None, self.epsilon).transpose(1, 2)
        value_BKTE = self.value(x_BTD).unflatten(-1, per_head).transpose(1, 2)
        if cache is not None:
            key_BKTE, value_BKTE = cache.append(layer, key_BKTE, value_BKTE)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(query_BHTE, key_BKTE, value_BKTE, visible, dropout))


class MLP(nn.Module):
    """Two layers with the square of ReLU between them (So et al. 2021, arXiv 2109.08668)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = unset_linear(config.width, config.mlp_width, bias=False)
        self.down = unset_linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """What each token works out by itself."""
        return self.down(functional.relu(self.up(x_BTD)).square())


class Block(nn.Module):
    """Attention, then MLP, each on normed input and added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self, x_BTD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, visible: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """The residual stream after this block."""
        normed_BTD = rms_norm(x_BTD, None, self.epsilon, is_operand=True)
        x_BTD = x_BTD + self.attention(normed_BTD, cos_T1E, sin_T1E, visible, cache, layer)
        return x_BTD + self.mlp(rms_norm(x_BTD, None, self.epsilon, is_operand=True))


class Model(LanguageModel):
    """nanochat with its language-model head."""

    hf_prefix = "model."
    hf_renames = (
        ("token_embed", "model.embed_tokens"),
        ("blocks", "model.layers"),
        ("attention.query", "self_attn.q_proj"),
        ("attention.key", "self_attn.k_proj"),
        ("attention.value", "self_attn.v_proj"),
        ("attention.out", "self_attn.o_proj"),
        ("mlp.up", "mlp.fc1"),
        ("mlp.down", "mlp.fc2"),
    )
    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config, pad_vocab_to: int = 1, seed: int | None = 0) -> None:
        """See `LanguageModel`; `seed` None leaves the weights unset."""
        super().__init__(config, pad_vocab_to)
        self.softcap = config.logit_softcap
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        cos, sin = rotary_tables(config.context, config.head_width, config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)
        # nanochat turns the other way round than RoPE's authors.
        self.register_buffer("sin", -sin, persistent=False)
        if seed is not None:
            self.initialise(seed)

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Matrices by their spectral norm, embeddings N(0, 1); the head and what ends a branch start at zero.

        Source: nanochat's own code, for the matrices after Yang et al. 2023 (arXiv 2310.17813). Embeddings
        that are the head too (not nanochat's habit) are N(0, 0.02), for a first loss of ln V; they are
        normed anyway.
        """
        if name == "token_embed.weight":
            std = self.config.init_std if self.config.tie_embeddings else 1.0
            parameter.normal_(0, std, generator=generator)
        elif name != "lm_head.weight" and not name.endswith(("out.weight", "down.weight")):
            num_out, num_in = parameter.shape
            std = min(1.0, math.sqrt(num_out / num_in)) / math.sqrt(num_in)
            parameter.normal_(0, std, generator=generator)

    def run_blocks(
        self, ids_BT: Tensor, positions: Tensor | slice, visible: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Hidden states after the last norm."""
        x_BTD = rms_norm(self.token_embed(ids_BT), None, self.config.norm_epsilon)
        cos_T1E, sin_T1E = (table[positions].unsqueeze(-2).to(x_BTD.dtype) for table in (self.cos, self.sin))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cos_T1E, sin_T1E, visible, cache, layer)
        return rms_norm(x_BTD, None, self.config.norm_epsilon)
