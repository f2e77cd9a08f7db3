"""Answers of one model to many prompts, several to each, and what is asked of them: KL, rewards, what they are like.

Shapes: P prompts, A answers to each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import numpy as np
from numpy import ndarray

from eval.metrics.distinct_n import distinct_n
from fledge import console
from fledge.models.generation import Sampling
from fledge.tokens import TextTokenizer
from rlhf import rollout
from rlhf.policy import Answers, Policy
from rlhf.prompts import Asked
from rlhf.rollout import Written
from rlhf.scoring import Reward

# Answers to one prompt that are written together, always: the sampler tells copies of a prompt apart within a batch.
BLOCK = 16


@dataclass(frozen=True)
class Drawn:
    """Answers; all fields are (P, A)."""

    text: ndarray
    tokens: ndarray  # with the one that ended it
    has_stopped: ndarray
    kl: ndarray  # log(policy / reference) of the whole answer, nats; its mean is unbiased for the KL (k1)
    reference_nats: ndarray  # log reference of the whole answer
    reward: ndarray
    gold: ndarray | None = None

    def chosen(self, place_PA: ndarray) -> "Drawn":
        """Those at some places of each prompt's row."""
        fields: dict[str, Any] = {
            name: None if x is None else np.take_along_axis(x, place_PA, 1) for name, x in vars(self).items()
        }
        return Drawn(**fields)

    def told(self, num: int) -> dict[str, float]:
        """What they are like; the variety is that of the first `num` a prompt, as it falls with more text."""
        return {
            "distinct_2": distinct_n(self.text[:, :num].ravel().tolist()),
            "answer_tokens": float(self.tokens.mean()),
            "stopped_share": float(self.has_stopped.mean()),
            "perplexity": exp(-float(self.reference_nats.sum() / self.tokens.sum())),
        }


@dataclass(frozen=True)
class Judges:
    """What answers are measured with; the same for all models."""

    reward: Reward
    gold: Reward | None
    unfinished_penalty: float = 0.0  # taken from the reward of an answer that did not end by itself


def draw(
    model: Any, asked: Sequence[Asked], num: int, sampling: Sampling, tokenizer: TextTokenizer, at_once: int, who: str
) -> list[list[Written]]:
    """`num` answers to each prompt; how many are written at once changes none of them."""
    found: list[list[Written]] = [[] for _ in asked]
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].ids))
    with console.progress(f"{who}: answers", len(asked) * num) as bar:
        for start in range(0, num, BLOCK):
            copies = min(BLOCK, num - start)
            own = replace(sampling, seed=(sampling.seed << 20) + start)
            step = max(1, at_once // copies)
            for some in (order[i : i + step] for i in range(0, len(order), step)):
                rows = [i for i in some for _ in range(copies)]
                written = rollout.write(model, [asked[i].ids for i in rows], own, tokenizer, len(rows))
                for i, answer in zip(rows, written, strict=True):
                    found[i].append(answer)
                bar.advance(len(rows))
    return found


def judge(
    asked: Sequence[Asked], answers: Sequence[Sequence[Written]], judges: Judges, reference: Policy | None, who: str
) -> Drawn:
    """Measure the answers to each prompt.

    Args:
        reference: None where the answers are its own.
    Raises:
        DataError: a reward fails, or gives no finite number.
    """
    rows: list[dict[str, Any]] = []
    with console.progress(f"{who}: rewards", sum(map(len, answers))) as bar:
        for one, written in zip(asked, answers, strict=True):
            texts, ids = [answer.text for answer in written], [answer.ids for answer in written]
            same = [one.row] * len(texts)
            nats = reference_nats = np.array([sum(answer.logprobs) for answer in written])
            if reference:
                scored = reference.scored(Answers([one.ids] * len(ids), ids))
                reference_nats = np.array([float(logprob_N.double().sum()) for logprob_N in scored])
            has_stopped = np.array([answer.has_stopped for answer in written])
            rows.append(
                {
                    "text": np.array(texts, dtype=object),
                    "tokens": np.array([len(answer) for answer in ids]),
                    "has_stopped": has_stopped,
                    "kl": nats - reference_nats,
                    "reference_nats": reference_nats,
                    "reward": np.array(judges.reward.score(same, texts)) - judges.unfinished_penalty * ~has_stopped,
                }
                | ({"gold": np.array(judges.gold.score(same, texts))} if judges.gold else {})
            )
            bar.advance(len(texts))
    return Drawn(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
