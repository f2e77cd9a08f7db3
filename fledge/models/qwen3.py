"""Qwen3: rotary positions, RMSNorm, normed queries and keys, shared key-value heads, SwiGLU, no biases.

Source: Yang et al. 2025, "Qwen3 Technical Report" (arXiv 2505.09388), section 2.
Shapes: B rows, T tokens, D width, H heads, K key-value heads, E head width.
"""

import dataclasses
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
    """Qwen3's shape; `dropout` falls on the attention weights, as in transformers (Qwen3 itself has none)."""

    model_type: ClassVar[str] = "qwen3"
    hf_class: ClassVar[str] = "Qwen3ForCausalLM"

    rotary_base: float = 1_000_000.0  # of the released models

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_width % 2:
            raise ConfigError(f"qwen3: head width {self.head_width} must be even: rotary positions turn pairs")

    @classmethod
    def usual_mlp_width(cls, width: int) -> int:
        """Three times the width, as in Qwen3-0.6B: SwiGLU has three matrices."""
        return 3 * width

    @classmethod
    def from_hf(cls, content: dict[str, Any]) -> Self:
        """The config in Qwen3's config.json, in its older and newer form; defaults are transformers'."""
        implemented: dict[str, tuple[Any, ...]] = {
            "attention_bias": (False,),
            "hidden_act": ("silu",),
            "use_sliding_window": (False,),
        }
        implemented["layer_types"] = (None, ["full_attention"] * len(content.get("layer_types") or ()))
        refuse(content, implemented)
        heads, kv_heads = content.get("num_attention_heads", 32), content.get("num_key_value_heads", 32)
        return cls(
            vocab_size=content.get("vocab_size", 151936),
            context=content.get("max_position_embeddings", 32768),
            layers=content.get("num_hidden_layers", 32),
            width=content.get("hidden_size", 4096),
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_width=content.get("head_dim", 128),
            mlp_width=content.get("intermediate_size", 22016),
            dropout=content.get("attention_dropout", 0.0),
            tie_embeddings=content.get("tie_word_embeddings", False),
            norm_epsilon=content.get("rms_norm_eps", 1e-6),
            init_std=content.get("initializer_range", 0.02),
            rotary_base=rotary_base(content),
            **cls.ids_of_hf(content, bos=None, eos=None, pad=None),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of Qwen3's config.json, without `dtype`; rotary keys for older and newer readers."""
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
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": self.dropout,
            "use_sliding_window": False,
            "rms_norm_eps": self.norm_epsilon,
            "initializer_range": self.init_std,
            "rope_theta": self.rotary_base,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rotary_base},
            "tie_word_embeddings": self.tie_embeddings,
            **self.hf_ids(),
        }

    def kept_bytes(self, compute: int, stream: int) -> int:
        """See `ModelConfig`; autocast norms queries and keys in float32."""
        query, key = self.heads * self.head_width, self.kv_heads * self.head_width
        copies = stream > compute
        norms = 2 * (stream * self.width + 4) + stream * (query + key) + 4 * (self.heads + self.kv_heads)
        attention = compute * ((3 if copies else 1) * self.width + query + 2 * key + query) + 4 * self.heads
        # The gate before and after SiLU, what it gates, and the product.
        mlp = compute * ((2 if copies else 1) * self.width + 4 * self.mlp_width)
        return norms + attention + mlp


class RMSNorm(nn.Module):
    """Division by the root mean square, times a learned weight."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normed over the last dimension."""
        return rms_norm(x, self.weight, self.epsilon, is_operand=True)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normed queries and keys."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_width, self.dropout = config.head_width, config.dropout
        self.query = unset_linear(config.width, config.heads * config.head_width, bias=False)
        self.key = unset_linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.value = unset_linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.out = unset_linear(config.heads * config.head_width, config.width, bias=False)
        self.query_norm = RMSNorm(config.head_width, config.norm_epsilon)
        self.key_norm = RMSNorm(config.head_width, config.norm_epsilon)

    def forward(
        self, x_BTD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, visible: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """What each token reads from the tokens before it."""
        per_head = (-1, self.head_width)
        query_BTHE = self.query_norm(self.query(x_BTD).unflatten(-1, per_head))
        key_BTKE = self.key_norm(self.key(x_BTD).unflatten(-1, per_head))
        query_BHTE = rotate(query_BTHE, cos_T1E, sin_T1E).transpose(1, 2)
        key_BKTE = rotate(key_BTKE, cos_T1E, sin_T1E).transpose(1, 2)
        value_BKTE = self.value(x_BTD).unflatten(-1, per_head).transpose(1, 2)
        if cache is not None:
            key_BKTE, value_BKTE = cache.append(layer, key_BKTE, value_BKTE)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(query_BHTE, key_BKTE, value_BKTE, visible, dropout))


class MLP(nn.Module):
    """SwiGLU: one projection, gated by another (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = unset_linear(config.width, config.mlp_width, bias=False)
        self.up = unset_linear(config.width, config.mlp_width, bias=False)
        self.down = unset_linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """What each token works out by itself."""
        return self.down(functional.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    """Attention, then MLP, each on normed input and added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x_BTD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, visible: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """The residual stream after this block."""
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), cos_T1E, sin_T1E, visible, cache, layer)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(LanguageModel):
    """Qwen3 with its language-model head."""

    hf_prefix = "model."
    hf_renames = (
        ("token_embed", "model.embed_tokens"),
        ("blocks", "model.layers"),
        ("norm1", "input_layernorm"),
        ("norm2", "post_attention_layernorm"),
        ("final_norm", "model.norm"),
        ("attention.query_norm", "self_attn.q_norm"),
        ("attention.key_norm", "self_attn.k_norm"),
        ("attention.query", "self_attn.q_proj"),
        ("attention.key", "self_attn.k_proj"),
        ("attention.value", "self_attn.v_proj"),
        ("attention.out", "self_attn.o_proj"),
        ("mlp.gate", "mlp.gate_proj"),
        ("mlp.up", "mlp.up_proj"),
        ("mlp.down", "mlp.down_proj"),
    )
    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config, pad_vocab_to: int = 1, seed: int | None = 0) -> None:
        """See `LanguageModel`; `seed` None leaves the weights unset."""
        super().__init__(config, pad_vocab_to)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)
        cos, sin = rotary_tables(config.context, config.head_width, config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        if seed is not None:
            self.initialise(seed)

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """N(0, 0.02), norms 1: `initializer_range` of the released config.json files."""
        if "norm" in name:
            parameter.fill_(1)
        else:
            parameter.normal_(0, self.config.init_std, generator=generator)

    def run_blocks(
        self, ids_BT: Tensor, positions: Tensor | slice, visible: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Hidden states after the last norm."""
        x_BTD = self.token_embed(ids_BT)
        cos_T1E, sin_T1E = (table[positions].unsqueeze(-2).to(x_BTD.dtype) for table in (self.cos, self.sin))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cos_T1E, sin_T1E, visible, cache, layer)
        return self.final_norm(x_BTD)
