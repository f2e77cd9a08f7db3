"""GPT-2, exactly: learned positions, pre-norm LayerNorm, GELU, biases, tied embeddings, three dropouts.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", with OpenAI's code.
Shapes: B rows, T tokens, D width, H heads, E head width.
"""

import dataclasses
import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fledge.errors import ConfigError
from fledge.models.architecture import LanguageModel, ModelConfig, refuse, unset_embedding, unset_linear
from fledge.models.attention import attend
from fledge.models.cache import KVCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """GPT-2's shape; `dropout` falls on what the blocks add to the residual stream."""

    model_type: ClassVar[str] = "gpt2"
    hf_class: ClassVar[str] = "GPT2LMHeadModel"

    norm_epsilon: float = 1e-5
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads != self.heads or self.heads * self.head_width != self.width:
            raise ConfigError(
                f"gpt2: {self.heads} heads need {self.heads} kv_heads (got {self.kv_heads}) "
                f"and a width that is a multiple of {self.heads} (got {self.width})"
            )

    @classmethod
    def sized(cls, **settings: Any) -> Self:
        """As `ModelConfig.sized`; one dropout for all three places."""
        config = super().sized(**settings)
        return dataclasses.replace(config, embed_dropout=config.dropout, attention_dropout=config.dropout)

    @classmethod
    def from_hf(cls, content: dict[str, Any]) -> Self:
        """The config in GPT-2's config.json; defaults are transformers'."""
        implemented: dict[str, tuple[Any, ...]] = {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False, None),
        }
        refuse(content, implemented)
        width, heads = content.get("n_embd", 768), content.get("n_head", 12)
        return cls(
            vocab_size=content.get("vocab_size", 50257),
            context=content.get("n_positions", 1024),
            layers=content.get("n_layer", 12),
            width=width,
            heads=heads,
            kv_heads=heads,
            head_width=width // heads,
            mlp_width=content.get("n_inner") or 4 * width,
            dropout=content.get("resid_pdrop", 0.1),
            embed_dropout=content.get("embd_pdrop", 0.1),
            attention_dropout=content.get("attn_pdrop", 0.1),
            tie_embeddings=content.get("tie_word_embeddings", True),
            norm_epsilon=content.get("layer_norm_epsilon", 1e-5),
            init_std=content.get("initializer_range", 0.02),
            **cls.ids_of_hf(content, bos=50256, eos=50256, pad=None),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of GPT-2's config.json, without `dtype`."""
        return {
            "architectures": [self.hf_class],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "n_positions": self.context,
            "n_layer": self.layers,
            "n_embd": self.width,
            "n_head": self.heads,
            "n_inner": None if self.mlp_width == 4 * self.width else self.mlp_width,
            "activation_function": "gelu_new",
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.embed_dropout,
            "attn_pdrop": self.attention_dropout,
            "layer_norm_epsilon": self.norm_epsilon,
            "initializer_range": self.init_std,
            "tie_word_embeddings": self.tie_embeddings,
            **self.hf_ids(),
        }

    def kept_bytes(self, compute: int, stream: int) -> int:
        """See `ModelConfig`; with 4 width in the MLP and no dropout 32 bytes a width in bfloat16, as in the paper."""
        norms = 2 * (stream * self.width + 8)  # input, mean, deviation
        attention = compute * (self.width + 3 * self.width + self.width) + 4 * self.heads
        mlp = compute * (self.width + 2 * self.mlp_width)  # before and after GELU
        return norms + attention + mlp + (2 * self.width if self.dropout else 0)  # masks are bytes


# OpenAI's four sizes, and the one that Sanh et al. 2019 distilled from the first; all with 1,024 positions.
RELEASED = {
    "gpt2": {"layers": 12, "width": 768, "heads": 12},
    "gpt2-medium": {"layers": 24, "width": 1024, "heads": 16},
    "gpt2-large": {"layers": 36, "width": 1280, "heads": 20},
    "gpt2-xl": {"layers": 48, "width": 1600, "heads": 25},
    "distilgpt2": {"layers": 6, "width": 768, "heads": 12},
}


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values come from one matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.weights_dropout, self.output_dropout = config.attention_dropout, config.dropout
        self.qkv = unset_linear(config.width, 3 * config.width, bias=True)
        self.out = unset_linear(config.width, config.width, bias=True)

    def forward(self, x_BTD: Tensor, visible: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """What each token reads from the tokens before it."""
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        query_BHTE, key_BHTE, value_BHTE = qkv.unbind(0)
        if cache is not None:
            key_BHTE, value_BHTE = cache.append(layer, key_BHTE, value_BHTE)
        dropout = self.weights_dropout if self.training else 0.0
        mixed_BTD = self.out(attend(query_BHTE, key_BHTE, value_BHTE, visible, dropout))
        return functional.dropout(mixed_BTD, self.output_dropout, self.training)


class MLP(nn.Module):
    """Two layers with the tanh form of GELU between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.up = unset_linear(config.width, config.mlp_width, bias=True)
        self.down = unset_linear(config.mlp_width, config.width, bias=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """What each token works out by itself."""
        out_BTD = self.down(functional.gelu(self.up(x_BTD), approximate="tanh"))
        return functional.dropout(out_BTD, self.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each on normed input and added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, visible: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """The residual stream after this block."""
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), visible, cache, layer)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(LanguageModel):
    """GPT-2 with its language-model head."""

    hf_prefix = "transformer."
    hf_ignored = r"\.attn\.(masked_)?bias$"  # the causal mask
    hf_renames = (
        ("token_embed", "transformer.wte"),
        ("position_embed", "transformer.wpe"),
        ("blocks", "transformer.h"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("final_norm", "transformer.ln_f"),
        ("attention.qkv", "attn.c_attn"),
        ("attention.out", "attn.c_proj"),
        ("mlp.up", "mlp.c_fc"),
        ("mlp.down", "mlp.c_proj"),
    )

    def __init__(self, config: Config, pad_vocab_to: int = 1, seed: int | None = 0) -> None:
        """See `LanguageModel`; `seed` None leaves the weights unset."""
        super().__init__(config, pad_vocab_to)
        self.position_embed = unset_embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, config.norm_epsilon)
        if seed is not None:
            self.initialise(seed)

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """N(0, 0.02); what is added to the residual stream is smaller by the root of the number of additions.

        Source: Radford et al. 2019, section 2.3, and OpenAI's code for the 0.02 (it has 0.01 for positions;
        transformers, which is followed, has 0.02).
        """
        if "norm" in name:
            parameter.fill_(float(name.endswith("weight")))
        elif name.endswith("weight"):
            is_added = name.endswith(("attention.out.weight", "mlp.down.weight"))
            scale = 1 / math.sqrt(2 * self.config.layers) if is_added else 1.0
            parameter.normal_(0, self.config.init_std * scale, generator=generator)

    def run_blocks(
        self, ids_BT: Tensor, positions: Tensor | slice, visible: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Hidden states after the last norm."""
        x_BTD = self.token_embed(ids_BT) + self.position_embed.weight[positions]
        x_BTD = functional.dropout(x_BTD, self.config.embed_dropout, self.training)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, visible, cache, layer)
        return self.final_norm(x_BTD)

    def is_transposed(self, name: str) -> bool:
        """GPT-2 was released with matrices of shape (in, out)."""
        return name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))
