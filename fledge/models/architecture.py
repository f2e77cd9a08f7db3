"""What every architecture has in common: config, interface, and its names in a Hugging Face folder.

An architecture is a module `fledge.models.<model_type>` that defines `Config` and `Model`; adding one is
adding a file. Shapes: B rows, T tokens, D width, V vocabulary.
"""

import abc
import dataclasses
import importlib
import importlib.util
import math
import re
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from fledge.errors import ConfigError, DataError, ModelError
from fledge.models.attention import visible_keys
from fledge.models.cache import KVCache
from fledge.models.linear import Linear, linear
from fledge.models.loss import linear_cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(abc.ABC):
    """The shape of a language model; the same names for every architecture."""

    model_type: ClassVar[str]  # of config.json; also the name of the module
    hf_class: ClassVar[str]  # transformers' class for the same weights

    vocab_size: int
    context: int  # positions
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    dropout: float = 0.0
    tie_embeddings: bool = True
    norm_epsilon: float = 1e-6
    init_std: float = 0.02
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.type
            if kind in (bool, int, float) and not isinstance(value, int | float if kind is float else kind):
                raise ConfigError(f"{self.model_type}: {field.name} is {value!r}, must be of type {kind.__name__}")
        for name in ("vocab_size", "context", "layers", "width", "heads", "kv_heads", "head_width", "mlp_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{self.model_type}: {name} is {getattr(self, name)}, must be at least 1")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"{self.model_type}: {self.heads} heads can't share {self.kv_heads} key-value heads; "
                "heads must be a multiple of kv_heads"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{self.model_type}: dropout is {self.dropout}, must be in [0, 1)")

    @classmethod
    def sized(
        cls,
        *,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        mlp_width: int | None = None,
        tie_embeddings: bool | None = None,
        **fields: Any,
    ) -> Self:
        """A config from the settings that all architectures share; None is what the authors have.

        Args:
            fields: the config's others, such as `vocab_size`, `context` and `layers`.
        Raises:
            ConfigError: the numbers do not fit together; says which.
        """
        if heads < 1 or width % heads:
            raise ConfigError(
                f"{cls.model_type}: width {width} can't be split over {heads} heads; width must be a multiple of heads"
            )
        if tie_embeddings is not None:
            fields["tie_embeddings"] = tie_embeddings
        return cls(
            width=width,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_width=width // heads,
            mlp_width=cls.usual_mlp_width(width) if mlp_width is None else mlp_width,
            **fields,
        )

    @classmethod
    def usual_mlp_width(cls, width: int) -> int:
        """The MLP's inner width that the architecture's authors use for a model of this width."""
        return 4 * width

    @classmethod
    @abc.abstractmethod
    def from_hf(cls, content: dict[str, Any]) -> Self:
        """The config in a config.json.

        Raises:
            ModelError: it asks for something that is not implemented; names the key.
        """

    @abc.abstractmethod
    def to_hf(self) -> dict[str, Any]:
        """The content of config.json, without `dtype`."""

    @abc.abstractmethod
    def kept_bytes(self, compute: int, stream: int) -> int:
        """Bytes that autograd keeps of one token from a block's forward to its backward pass, on a GPU.

        After Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, for these blocks as torch runs them: each
        operation's saved inputs, once a storage; flash attention keeps no scores but one float32 a head.
        Args:
            compute: bytes a number of the matrix products.
            stream: bytes a number of the residual stream; under autocast more than `compute`, and then every
                linear layer keeps a copy of its input of its own.
        """

    def least_weights(self) -> int:
        """Fewer than a model has: its embeddings, queries and one matrix of each MLP."""
        return self.width * (self.vocab_size + self.layers * (self.heads * self.head_width + self.mlp_width))

    @staticmethod
    def ids_of_hf(content: dict[str, Any], **defaults: int | None) -> dict[str, Any]:
        """The special ids in a config.json, as fields of a config; `defaults` are the architecture's."""
        ids = {f"{name}_id": content.get(f"{name}_token_id", default) for name, default in defaults.items()}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in ids.items()}

    def hf_ids(self) -> dict[str, Any]:
        """The special ids as config.json has them."""
        eos = list(self.eos_id) if isinstance(self.eos_id, tuple) else self.eos_id
        return {"bos_token_id": self.bos_id, "eos_token_id": eos, "pad_token_id": self.pad_id}


class LanguageModel(nn.Module, abc.ABC):
    """A causal language model: ids in, next-token logits out."""

    # Our parts of a parameter name and those in the Hugging Face folder, replaced one after the other.
    hf_renames: ClassVar[tuple[tuple[str, str], ...]]
    hf_prefix: ClassVar[str]  # of all parameters but the head; left out by old files and bare models
    hf_ignored: ClassVar[str] = r"rotary_emb\.inv_freq$"  # tensors in old files that are no weights
    softcap: float | None = None  # logits are squashed into (-softcap, softcap)

    token_embed: nn.Embedding
    lm_head: nn.Linear | None

    def __init__(self, config: ModelConfig, pad_vocab_to: int = 1) -> None:
        """Common parts of all architectures; theirs take the same arguments and a `seed`.

        Args:
            pad_vocab_to: the vocabulary's rows are rounded up to a multiple of this, for faster matrix
                products; the extra rows exist in memory only and take no part in softmax or saving.
        """
        super().__init__()
        self.config: Any = config
        rows = -(-config.vocab_size // pad_vocab_to) * pad_vocab_to
        self.token_embed = unset_embedding(rows, config.width)
        self.lm_head = None if config.tie_embeddings else unset_linear(config.width, rows, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (V padded, D): the token embeddings themselves where they are tied."""
        return self.token_embed.weight if self.lm_head is None else self.lm_head.weight

    def initialise(self, seed: int) -> None:
        """Draw all weights anew, in place; a seed gives the same for every vocabulary padding."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                rows = self.config.vocab_size if self.has_vocabulary_rows(name) else len(parameter)
                parameter.zero_()
                self.initialise_parameter(name, parameter[:rows], generator)

    @abc.abstractmethod
    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Set one parameter, now zero and without its padding rows, to its value before training."""

    @abc.abstractmethod
    def run_blocks(
        self, ids_BT: Tensor, positions: Tensor | slice, visible: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Hidden states after the last norm; the arguments are worked out by `hidden`."""

    def hidden(self, ids_BT: Tensor, cache: KVCache | None = None, is_padding_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) after the last norm; positions are counted from the left, leaving padding out.

        Args:
            cache: keys and values of the tokens before these; those of these tokens are appended.
            is_padding_BT: True where a token is not there; nothing attends to it, its own result means
                nothing. Padding to the right of a row needs no mark: attention is causal.
        Raises:
            DataError: there are more tokens than positions.
        """
        past = 0 if cache is None else cache.length
        num_tokens = ids_BT.shape[1]
        if past + num_tokens > self.config.context:
            raise DataError(
                f"{past + num_tokens} tokens do not fit into the model's context of {self.config.context}; shorten them"
            )
        if cache is not None:
            is_padding_BT = cache.extend(num_tokens, is_padding_BT)  # from here on over all keys
        visible = visible_keys(num_tokens, past, is_padding_BT, ids_BT.device)
        positions: Tensor | slice = slice(past, past + num_tokens)
        if is_padding_BT is not None:
            positions = ((~is_padding_BT).cumsum(1) - 1).clamp(min=0)[:, past:]
        return self.run_blocks(ids_BT, positions, visible, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (..., V) of hidden states (..., D)."""
        logits = linear(hidden, self.head_weight)[..., : self.config.vocab_size].float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor | None = None, reduction: Literal["mean", "sum", "none"] = "mean"
    ) -> Tensor:
        """Logits (B, T, V), or the loss if there are targets."""
        if targets_BT is None:
            return self.logits(self.hidden(ids_BT))
        return self.loss(ids_BT, targets_BT, reduction)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
        """Cross-entropy of the targets in nats, float32; (B, T, V) logits are never held at once.

        Args:
            targets_BT: the id that follows each token; -100 is left out (0 in the result of "none").
        """
        return linear_cross_entropy(
            self.hidden(ids_BT), self.head_weight, targets_BT, self.config.vocab_size, self.softcap, reduction
        )

    def hf_name(self, name: str) -> str:
        """The name in model.safetensors of one of our parameters."""
        for ours, theirs in self.hf_renames:
            name = name.replace(ours, theirs)
        return name

    def is_transposed(self, name: str) -> bool:
        """Whether a parameter of ours is kept transposed in model.safetensors."""
        return False

    def has_vocabulary_rows(self, name: str) -> bool:
        """Whether a parameter has one row per token of the vocabulary."""
        return name in ("token_embed.weight", "lm_head.weight")

    def to_hf_state(self) -> dict[str, Tensor]:
        """All weights by their names in model.safetensors, on the CPU, contiguous, without padding rows."""
        state = {}
        for name, parameter in self.named_parameters():
            tensor = parameter.detach()
            if self.has_vocabulary_rows(name):
                tensor = tensor[: self.config.vocab_size]
            state[self.hf_name(name)] = (tensor.T if self.is_transposed(name) else tensor).cpu().contiguous()
        return state

    def load_hf_state(self, state: dict[str, Tensor], where: str) -> None:
        """Take over all weights from a model.safetensors; `where` is named in errors.

        Raises:
            ModelError: tensors are missing, unexpected or of another shape; names them.
        """
        parameters = dict(self.named_parameters())
        names = {self.hf_name(name): name for name in parameters}
        state = {name: tensor for name, tensor in state.items() if not re.search(self.hf_ignored, name)}
        if not any(name.startswith(self.hf_prefix) for name in state):
            state = {n if n == "lm_head.weight" else self.hf_prefix + n: t for n, t in state.items()}
        if self.lm_head is None and (head := state.pop("lm_head.weight", None)) is not None:
            embeddings = state.get(self.hf_name("token_embed.weight"))
            if embeddings is not None and not torch.equal(head, embeddings):
                raise ModelError(
                    f"{where}: config.json says tie_word_embeddings, but lm_head.weight is not the embeddings"
                )
        problems = []
        if missing := sorted(set(names) - set(state)):
            problems.append(f"missing: {_some(missing)}")
        if unexpected := sorted(set(state) - set(names)):
            problems.append(f"unexpected: {_some(unexpected)}")
        wrong = []
        for hf_name, name in names.items():
            if hf_name in state:
                parameter, tensor = parameters[name].data, state[hf_name]
                tensor = tensor.T if self.is_transposed(name) and tensor.ndim == 2 else tensor
                rows = parameter[: self.config.vocab_size] if self.has_vocabulary_rows(name) else parameter
                if tensor.shape != rows.shape:
                    wrong.append(f"{hf_name} is {list(state[hf_name].shape)}, not as config.json has it")
                else:
                    parameter[len(rows) :] = 0
                    rows.copy_(tensor)
        if wrong:
            problems.append(f"wrong shape: {_some(wrong)}")
        if problems:
            raise ModelError(f"{where}: tensors do not match config.json; " + "; ".join(problems))

    def num_parameters(self) -> int:
        """Weights as saved: tied embeddings once, padding rows not at all."""
        padding = len(self.token_embed.weight) - self.config.vocab_size
        matrices = 1 if self.lm_head is None else 2
        return sum(p.numel() for p in self.parameters()) - matrices * padding * self.config.width

    def matmul_parameters(self) -> int:
        """Weights every token is multiplied with, the N of 6N: all but looked-up embeddings, and the head."""
        inner = sum(
            p.numel() for name, p in self.named_parameters() if "embed" not in name and name != "lm_head.weight"
        )
        return inner + self.config.vocab_size * self.config.width

    def flops_per_token(self, num_tokens: int) -> int:
        """Training FLOPs for each of `num_tokens` in a row, both passes: 6N + 12 layers width tokens.

        Source: Chowdhery et al. 2022 (arXiv 2204.02311), appendix B; width is that of all heads together.
        """
        attention = 12 * self.config.layers * self.config.heads * self.config.head_width * num_tokens
        return 6 * self.matmul_parameters() + attention


def unset_linear(num_in: int, num_out: int, bias: bool) -> nn.Linear:
    """A linear layer whose weights are not drawn: `initialise` or loading sets them."""
    return nn.utils.skip_init(Linear, num_in, num_out, bias=bias, device=torch.get_default_device())


def unset_embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding whose weights are not drawn."""
    return nn.utils.skip_init(nn.Embedding, rows, width, device=torch.get_default_device())


def is_ours(model_type: str) -> bool:
    """Whether `fledge.models` has an architecture of this name."""
    if not model_type.isidentifier():
        return False
    name = f"fledge.models.{model_type}"
    return importlib.util.find_spec(name) is not None and hasattr(importlib.import_module(name), "Model")


def find_config(model_type: str) -> type[ModelConfig]:
    """The config class of an architecture.

    Raises:
        ModelError: there is none of this name.
    """
    return _module(model_type).Config


def build(config: ModelConfig, seed: int | None = 0, pad_vocab_to: int = 1) -> LanguageModel:
    """A model of a config's architecture; `seed` None leaves the weights unset, for loading."""
    return _module(config.model_type).Model(config, pad_vocab_to, seed)


def _module(model_type: str) -> Any:
    if not is_ours(model_type):
        raise ModelError(f"no architecture named {model_type!r} in fledge/models")
    return importlib.import_module(f"fledge.models.{model_type}")


def refuse(content: dict[str, Any], implemented: dict[str, tuple[Any, ...]]) -> None:
    """Raise a ModelError that names the first key of config.json whose value is not an implemented one."""
    for key, values in {"quantization_config": (None,), **implemented}.items():
        if key in content and content[key] not in values:
            raise ModelError(
                f"config.json: {key} = {content[key]!r} is not implemented for {content.get('model_type')}; "
                f"only {' or '.join(map(repr, values))}"
            )


def refuse_nan(total: float) -> None:
    """Raise a ModelError where the sum of what a model gives is no finite number."""
    if not math.isfinite(total):
        raise ModelError("the model gives NaN or infinity: its weights are damaged; copy it or train it again")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
