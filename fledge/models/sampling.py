"""How the next token is chosen: settings, and the step from logits to ids with their log-probabilities.

Shapes: B rows, V vocabulary, C candidates (V, or the top k).
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fledge.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is sampled; the defaults draw from the model's own distribution."""

    max_new_tokens: int = 100
    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # only the k likeliest tokens; 0 is all
    top_p: float = 1.0  # only the likeliest tokens that together reach this probability
    min_p: float = 0.0  # only tokens with at least this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # above 1, tokens already there become less likely (Keskar et al. 2019)
    stop_ids: tuple[int, ...] = ()  # a row ends with the first of these, which is part of its result
    stop_strings: tuple[str, ...] = ()  # a row ends with the token that completes one of these
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature == 0 or self.temperature >= 1e-6, "0, or at least 1e-06"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (1e-3 <= self.repetition_penalty <= 1e3, "from 0.001 to 1000"),  # no infinite logits
            "stop_strings": (all(self.stop_strings), "not empty"),
        }
        for name, (is_good, wanted) in limits.items():
            if not is_good:
                raise ConfigError(f"sampling: {name} is {getattr(self, name)!r}, must be {wanted}")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One token for each row."""

    ids: Tensor  # (B,)
    logprobs: Tensor  # float32 (B,)


def choose(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor, is_seen_BV: Tensor | None) -> Chosen:
    """The next token of each row.

    Args:
        logits_BV: float32; changed in place.
        uniform_B: float64 in [0, 1), one random number a row: its place in the cumulative distribution.
        is_seen_BV: tokens that the repetition penalty falls on.
    Returns:
        ids, and their log-probabilities under the distribution drawn from: after penalty, temperature and
        cuts, with what is left scaled to 1. At temperature 0 that would always be 0; there they are those
        of the model itself.
    """
    if sampling.temperature == 0:
        logprobs_BV = torch.log_softmax(logits_BV, -1)
        ids_B = _penalised(logits_BV, sampling, is_seen_BV).argmax(-1)
        return Chosen(ids_B, logprobs_BV.gather(1, ids_B[:, None])[:, 0])
    candidates_BC = _penalised(logits_BV, sampling, is_seen_BV).div_(sampling.temperature)
    ids_BC = None
    if 0 < sampling.top_k < candidates_BC.shape[1]:
        candidates_BC, ids_BC = candidates_BC.topk(sampling.top_k)
    elif sampling.top_p < 1:
        candidates_BC, ids_BC = candidates_BC.sort(descending=True)
    probabilities_BC = candidates_BC.softmax(-1)
    if sampling.top_p < 1:  # a token goes if those before it suffice
        before_BC = probabilities_BC.cumsum(-1) - probabilities_BC
        probabilities_BC = probabilities_BC.masked_fill(before_BC >= sampling.top_p, 0)
    if sampling.min_p > 0:
        least_B1 = sampling.min_p * probabilities_BC.amax(-1, keepdim=True)
        probabilities_BC = probabilities_BC.masked_fill(probabilities_BC < least_B1, 0)
    # float64: float32 would lose the unlikely tokens of a large vocabulary; in place, as new memory costs more.
    cumulative_BC = probabilities_BC.double().cumsum_(-1)
    total_B1 = cumulative_BC[:, -1:]
    place_B1 = torch.searchsorted(cumulative_BC, uniform_B[:, None] * total_B1, right=True).clamp_(
        max=cumulative_BC.shape[1] - 1
    )  # NaN
    logprobs_B = (probabilities_BC.gather(1, place_B1) / total_B1).log().float()[:, 0]
    return Chosen((place_B1 if ids_BC is None else ids_BC.gather(1, place_B1))[:, 0], logprobs_B)


def _penalised(logits_BV: Tensor, sampling: Sampling, is_seen_BV: Tensor | None) -> Tensor:
    if is_seen_BV is None:
        return logits_BV
    penalty = sampling.repetition_penalty
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(is_seen_BV, lowered_BV, logits_BV)


def row_randomness(prompts: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """float64 (B, max_new_tokens) in [0, 1): each row's own stream of random numbers.

    A row's stream depends on the seed, on its prompt, and on how many equal prompts stand before it, and on
    nothing else in the batch: the same prompt gives the same text alone and among others, yet copies of one
    prompt give different texts.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    streams = []
    for prompt in map(tuple, prompts):
        key = repr((sampling.seed, seen[prompt], prompt)).encode()
        seen[prompt] += 1
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)
        generator = torch.Generator().manual_seed(seed)
        streams.append(torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64))
    # Below 1 by enough that the product with a rounded total stays below the total.
    return torch.stack(streams).clamp_(max=1 - 1e-12)
