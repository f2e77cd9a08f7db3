"""Answers of the policy, what they earned, and what each of their tokens is taught by.

What was sampled is what is trained on: ids in, ids out, with the log-probabilities that the sampler drew them with.
Shapes: B episodes, N tokens of the longest answer.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fledge.models import generation
from fledge.models.generation import Sampling
from fledge.tokens import TextTokenizer
from rlhf.advantage import estimate, whiten
from rlhf.config import AdvantageConfig, RewardShapeConfig, SamplingConfig
from rlhf.kl import ESTIMATORS
from rlhf.policy import Answers


@dataclass(frozen=True)
class Written:
    """An answer as it was sampled."""

    ids: list[int]  # with the one that ended it
    logprobs: list[float]  # of each id, under the policy that sampled
    text: str  # without what ended it
    has_stopped: bool  # by itself


@dataclass(frozen=True)
class Episode:
    """A prompt, its answer, and what was thought of it when it was written."""

    prompt: list[int]
    answer: Written
    score: float  # of the reward, before anything is done to it
    reference_N: Tensor  # float32, under the reference
    value_N: Tensor  # float32, of the critic

    @property
    def kl(self) -> float:
        """log(policy / reference) of the whole answer, nats."""
        return float((torch.tensor(self.answer.logprobs) - self.reference_N).sum())


@dataclass(frozen=True)
class Lesson:
    """Episodes with what their tokens are taught by; padded to the right."""

    answers: Answers
    is_token_BN: Tensor
    logprob_BN: Tensor
    value_BN: Tensor
    advantage_BN: Tensor
    return_BN: Tensor

    def of(self, rows: Sequence[int], name: str, device: torch.device) -> Tensor:
        """One of the tensors for some rows, their tokens in a row: (M,)."""
        chosen = torch.as_tensor(rows)
        whole_BN: Tensor = getattr(self, name)
        return whole_BN[chosen][self.is_token_BN[chosen]].to(device)


@dataclass
class RewardScale:
    """Divides scores by their running standard deviation, so that one scale of settings suits all rewards."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def update(self, scores: Sequence[float]) -> None:
        """Take in a batch. Source: Chan et al. 1979, the parallel form of Welford's algorithm."""
        count, mean = len(scores), fmean(scores)
        squares = sum((score - mean) ** 2 for score in scores)
        total, shift = self.count + count, mean - self.mean
        self.squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def divisor(self) -> float:
        """The standard deviation so far; 1 while there is none but that of rounding."""
        deviation = math.sqrt(self.squares / max(self.count, 1))
        return deviation if deviation > 1e-9 * abs(self.mean) else 1.0


def sampling_of(settings: SamplingConfig, stop_ids: tuple[int, ...], *occasion: Any) -> Sampling:
    """How to sample on an occasion, such as a seed with a step's number: the same one draws the same numbers."""
    return Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        stop_ids=stop_ids,
        seed=int.from_bytes(blake2b(repr(occasion).encode(), digest_size=8).digest(), "little"),
    )


def write(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, tokenizer: TextTokenizer, at_once: int
) -> list[Written]:
    """An answer to each prompt of ids; prompts of like length are answered side by side."""
    found: dict[int, Written] = {}
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        # Copies of a prompt in two batches would else draw the same random numbers.
        own = dataclasses.replace(sampling, seed=sampling.seed + start)
        completions = generation.generate(model, [list(prompts[row]) for row in rows], own)
        for row, completion in zip(rows, completions, strict=True):
            ids, has_stopped = completion.ids, completion.finish == "stop"
            text = tokenizer.decode(ids[:-1] if has_stopped else ids)
            found[row] = Written(ids, completion.logprobs, text, has_stopped)
    return [found[row] for row in range(len(prompts))]


def prompts_of_step(num_prompts: int, num_episodes: int, seed: int, step: int) -> list[int]:
    """Which prompts a step asks: pass after pass over all of them, each shuffled anew; a function of seed and step."""
    numbers: list[int] = []
    first = step * num_episodes
    for epoch in range(first // num_prompts, (first + num_episodes - 1) // num_prompts + 1):
        numbers += np.random.default_rng([seed, 0, epoch]).permutation(num_prompts).tolist()
    start = first % num_prompts
    return numbers[start : start + num_episodes]


def lesson_of(
    episodes: Sequence[Episode],
    scale: RewardScale,
    kl_weight: float,
    reward: RewardShapeConfig,
    kl_estimator: str,
    advantage: AdvantageConfig,
) -> Lesson:
    """Token rewards, advantages and returns of some episodes; see `token_rewards` and `advantage.estimate`."""
    answers = Answers([e.prompt for e in episodes], [e.answer.ids for e in episodes])
    sampled = [torch.tensor(e.answer.logprobs) for e in episodes]
    logprob_BN, reference_BN, value_BN = (
        pad_sequence(rows, batch_first=True)
        for rows in (sampled, [e.reference_N for e in episodes], [e.value_N for e in episodes])
    )
    lengths_B = torch.tensor(answers.lengths)
    is_token_BN = torch.arange(logprob_BN.shape[1]) < lengths_B[:, None]
    scores = [e.score - (0 if e.answer.has_stopped else reward.unfinished_penalty) for e in episodes]
    if reward.scale == "running":
        scale.update(scores)
        scores = [score / scale.divisor for score in scores]
    if reward.clip:
        scores = [min(max(score, -reward.clip), reward.clip) for score in scores]
    kl_BN = ESTIMATORS[kl_estimator](logprob_BN, reference_BN)
    reward_BN = token_rewards(torch.tensor(scores), kl_BN, lengths_B, kl_weight)
    found = estimate(reward_BN, value_BN, is_token_BN, advantage.discount, advantage.trace)
    advantage_BN = whiten(found.advantage_BN, is_token_BN) if advantage.whiten else found.advantage_BN
    return Lesson(answers, is_token_BN, logprob_BN, value_BN, advantage_BN, found.return_BN)


def token_rewards(score_B: Tensor, kl_BN: Tensor, lengths_B: Tensor, kl_weight: float) -> Tensor:
    """What each token earned: minus the price of its KL, and the score at an answer's last token, once.

    Args:
        score_B: float32, of the whole answers.
        kl_BN: float32, nats; 0 where there is no token.
        lengths_B: of the answers, at least 1; the last token is the one that ended the answer, if any did.
    Source: Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, per token as Stiennon et al. 2020 (arXiv 2009.01325).
    """
    reward_BN = -kl_weight * kl_BN
    reward_BN[torch.arange(len(score_B)), lengths_B - 1] += score_B
    return reward_BN
