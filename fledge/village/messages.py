"""Messages, ham or spam, with exactly known p(text | label): how well one could tell them apart is computed.

Two grammars share their templates and differ in weights alone. The posterior of a message comes from parsing
it under both; the accuracy of the best classifier (which knows this world's facts) from the rules themselves.
"""

from collections.abc import Iterator
from math import exp, inf, log
from typing import Any

from fledge.village.grammar import RULE, Grammar, Rule
from fledge.village.random_stream import numbered_streams
from fledge.village.world import World, load_grammar

LABELS = ("ham", "spam")  # equally common


def rows(
    world: World, part: str = "train", count: int | None = None, comparisons: float = 1
) -> Iterator[dict[str, Any]]:
    """Yield {"text", "label"}; parts differ in their random numbers, so texts all but never come twice.

    Args:
        comparisons: 0 leaves out the clues that lie in a comparison: of trades, of names, of a sum with its terms.
    """
    count = (4_000 if part == "train" else 1_000) if count is None else count
    grammars = _grammars(world)
    for draws in numbered_streams(world.key("messages", part), 0, count):
        label = next(draws) % 2
        yield {"text": grammars[label].write(_root(comparisons), draws.__next__), "label": LABELS[label]}


def log_probs(world: World, text: str, comparisons: float = 1) -> tuple[float, float]:
    """Log-probability of a message (nats) among ham and among spam, this world's facts known.

    Raises:
        ValueError: the text is no message of this world.
    """
    both = []
    for grammar in _grammars(world):
        derivations = grammar.parse(_root(comparisons), text)
        readings = [sum(step.known_nats for step in steps) for steps in derivations]
        (true_one,) = [nats for nats in readings if nats > -inf]
        both.append(true_one)
    return both[0], both[1]


def posterior(world: World, text: str, comparisons: float = 1) -> float:
    """Probability that a message is spam, by Bayes' rule."""
    ham, spam = log_probs(world, text, comparisons)
    return 1 / (1 + exp(ham - spam))


def bayes_accuracy(world: World, comparisons: float = 1) -> float:
    """Expected accuracy of the best possible classifier, exactly: it picks the likelier label.

    What a clue says is the pair of its probabilities in ham and in spam. Clues are independent given the
    label, so pairs multiply along a template; equal likelihood ratios are added up to keep the list short.
    """
    ham, spam = (grammar.rules[_root(comparisons)] for grammar in _grammars(world))
    return sum(max(pair) for pair in _evidence(ham, spam)) / 2


def _evidence(ham: Rule, spam: Rule) -> list[tuple[float, float]]:
    """Pairs (p in ham, p in spam) of what a rule may say, one pair for each likelihood ratio."""
    by_ratio: dict[float, tuple[float, float]] = {}
    for k, (ops, twins) in enumerate(zip(ham.alternatives, spam.alternatives, strict=True)):
        pairs = [(ham.weights[k] / len(ham.tickets), spam.weights[k] / len(spam.tickets))]
        for op, twin in zip(ops, twins, strict=True):
            if op.kind == RULE:
                pairs = [(a * c, b * d) for a, b in pairs for c, d in _evidence(op.rule, twin.rule)]
        for a, b in pairs:
            ratio = round(log(a / b), 9)  # equal up to rounding
            c, d = by_ratio.get(ratio, (0.0, 0.0))
            by_ratio[ratio] = (a + c, b + d)
    return list(by_ratio.values())


def _root(comparisons: float) -> str:
    return "message" if comparisons else "simple"


def _grammars(world: World) -> tuple[Grammar, Grammar]:
    return load_grammar(world, "messages.yaml", column=0), load_grammar(world, "messages.yaml", column=1)
