"""What a task asks a model, and what the model answers."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from fledge.data.rows import Row


@dataclass(frozen=True)
class LogLikelihood:
    """Asks how likely a continuation is; an empty context is the beginning of a document."""

    context: str | tuple[Mapping[str, str], ...]  # a text, or messages for the chat template
    continuation: str


@dataclass(frozen=True)
class Likelihood:
    """The answer to a `LogLikelihood`."""

    nats: float  # log-probability of the continuation, at most 0
    num_tokens: int  # of the continuation
    is_greedy: bool  # the model itself would have written it
    is_cut: bool  # context and continuation did not fit; the beginning was left out
    is_whole: bool = True  # of the continuation nothing was left out


@dataclass(frozen=True)
class Generation:
    """Asks for a greedy answer to a prompt: a text to continue, or messages for the chat template."""

    prompt: str | list[dict[str, str]]
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """The answer to a `Generation`."""

    text: str  # without what ended it
    has_stopped: bool  # by itself, not by the limit
    num_tokens: int
    is_cut: bool = False  # the prompt's beginning was left out


Request = LogLikelihood | Generation
Answer = Any  # Likelihood or Generated, as the request was


@dataclass(frozen=True)
class Item:
    """What one row asks."""

    row: Row  # its fields by the kind's names
    requests: tuple[Request, ...]
    set: str  # a task's score is the unweighted mean over its sets; usually the file
    cluster: str = ""  # items of one cluster are not independent (the same prompt); "" is a cluster of its own
    facts: dict[str, Any] = field(default_factory=dict)  # what `score` needs besides


@dataclass(frozen=True)
class Ratio:
    """An item's part of a metric that is no mean over items but sum(part) / sum(whole): bits per byte."""

    part: float
    whole: float

    @classmethod
    def of(cls, value: "float | Ratio") -> "Ratio":
        """Any item's value as a part of such a metric; a mean counts each item as 1."""
        return value if isinstance(value, Ratio) else cls(value, 1.0)


def mean_over_sets(items: Sequence[Item], values: Sequence[float | Ratio]) -> float:
    """A value of each item as a task's score is made of it: the mean over sets of their means (or ratios)."""
    sums: dict[str, list[float]] = {}
    for item, value in zip(items, map(Ratio.of, values), strict=True):
        own = sums.setdefault(item.set, [0.0, 0.0])
        own[0], own[1] = own[0] + value.part, own[1] + value.whole
    return fmean(part / (whole or 1.0) for part, whole in sums.values())


def commonest(items: Sequence[Item], things: Sequence[Hashable]) -> float:
    """The score of who always says the same thing: the one that is right most often, over all sets."""
    sizes = Counter(item.set for item in items)
    scores: dict[Hashable, float] = defaultdict(float)
    for item, thing in zip(items, things, strict=True):
        scores[thing] += 1 / sizes[item.set] / len(sizes)
    return max(scores.values())
