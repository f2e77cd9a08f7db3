"""`fledge.load`: a model with its tokenizer, for use from Python."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from fledge.device import resolve_device
from fledge.errors import ConfigError, DataError, ModelError
from fledge.models import gpt2
from fledge.models.architecture import build
from fledge.models.folder import find_model, load_model
from fledge.models.generation import Sampling, complete, continue_texts, fitted
from fledge.tokens import TextTokenizer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A language model and the tokenizer it was trained with."""

    model: Any  # a LanguageModel of ours, or transformers' own class
    tokenizer: TextTokenizer

    @overload
    def generate(self, prompts: str, **settings: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[str], **settings: Any) -> list[str]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        **settings: Any,
    ) -> str | list[str]:
        """What the model writes after each prompt, without the prompt, until the document ends.

        Args:
            max_new_tokens: by default 100; of a prompt that leaves no room for them the end is read.
            max_length: the same limit counted with the prompt's tokens, in place of `max_new_tokens`.
            settings: as in `Sampling`: temperature (0: the likeliest token), top_k, top_p, seed ...
        Raises:
            ConfigError: a setting is unknown or impossible.
            DataError: a prompt alone has `max_length` tokens or more.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if max_length is not None:
            if max_new_tokens is not None:
                raise ConfigError("give max_new_tokens or max_length, not both")
            written = self._up_to(max_length, texts, settings)
        else:
            sampling = _sampling({"max_new_tokens": 100 if max_new_tokens is None else max_new_tokens} | settings)
            written = continue_texts(self.model, self.tokenizer, texts, sampling)
        return written[0] if isinstance(prompts, str) else written

    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Tensor:
        """float32 logits (B, T, V) of ids (B, T); a single row may come without its B."""
        ids_BT = torch.atleast_2d(torch.as_tensor(ids)).to(next(self.model.parameters()).device)
        with torch.no_grad():
            output = self.model(ids_BT)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits.float()

    def _up_to(self, max_length: int, texts: list[str], settings: dict[str, Any]) -> list[str]:
        prompts = [ids or [self.tokenizer.end_of_text_id] for ids in self.tokenizer.encode_batch(texts)]
        written = [""] * len(prompts)
        # Prompts of one length have the same room; copies of a prompt stay together, so texts do not change.
        for length in sorted(set(map(len, prompts))):
            if length >= max_length:
                raise DataError(f"a prompt of {length} tokens leaves no room within max_length {max_length}")
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            sampling = _sampling({"max_new_tokens": max_length - length} | settings)
            sampling = fitted(self.model, self.tokenizer, sampling)
            found = complete(self.model, self.tokenizer, [prompts[row] for row in rows], sampling)
            for row, text in zip(rows, found, strict=True):
                written[row] = text
        return written


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = torch.float32,
    random_weights: bool = False,
    tokenizer: str | Path | TextTokenizer | None = None,
    seed: int = 0,
) -> LoadedModel:
    """The model and tokenizer in a run or model folder, or of a hub name.

    gpt2, qwen3 and nanochat folders give our own class, every other type transformers' (no remote code).

    Args:
        dtype: of the weights; None is as in the file.
        random_weights: an untrained model of a known shape (`gpt2`, `gpt2-medium` ...); nothing is looked up.
        tokenizer: in place of the one in the model's folder; random weights need one.
        seed: of random weights.
    Raises:
        ModelError: no model or no tokenizer, a damaged one, or two that do not fit together.
    """
    device = resolve_device(device)
    if random_weights:
        if tokenizer is None:
            raise ModelError(f"{path}: random weights need a tokenizer; give tokenizer=PATH")
        vocabulary = _tokenizer(tokenizer)
        return LoadedModel(_untrained(str(path), vocabulary, seed).to(device=device, dtype=dtype), vocabulary)
    folder = find_model(path)
    model = load_model(folder, dtype, device)
    vocabulary = _tokenizer(folder if tokenizer is None else tokenizer)
    if vocabulary.vocab_size > model.config.vocab_size:
        raise ModelError(
            f"{path}: the tokenizer has {vocabulary.vocab_size} tokens, the model knows "
            f"{model.config.vocab_size}; give the tokenizer it was trained with"
        )
    return LoadedModel(model, vocabulary)


def _tokenizer(source: str | Path | TextTokenizer) -> TextTokenizer:
    return source if isinstance(source, TextTokenizer) else TextTokenizer.from_folder(source)


def _untrained(name: str, tokenizer: TextTokenizer, seed: int) -> Any:
    if name not in gpt2.RELEASED:
        known = ", ".join(gpt2.RELEASED)
        raise ModelError(f"{name}: no known shape for random weights; known: {known}")
    end = tokenizer.end_of_text_id
    config = gpt2.Config.sized(
        vocab_size=tokenizer.vocab_size, context=1024, dropout=0.1, bos_id=end, eos_id=end, **gpt2.RELEASED[name]
    )
    return build(config, seed).eval()


def _sampling(settings: dict[str, Any]) -> Sampling:
    known = [field.name for field in dataclasses.fields(Sampling)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"generate: unknown setting {name!r}; known: max_length, {', '.join(known)}")
    for name in ("stop_ids", "stop_strings"):
        if name in settings:
            given = settings[name]
            settings = settings | {name: (given,) if isinstance(given, str | int) else tuple(given)}
    return Sampling(**settings)
