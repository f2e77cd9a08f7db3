"""Preferences under a known gold reward, with Bradley-Terry noise, and the gold reward itself for RL.

Gold: a right answer is worth 2, a polite phrase 1 (a second one nothing), a rude one -1, and each word past the
twelfth costs 0.1. With a length bias the people who choose also like long answers: a reward model learns from them
to pay for padding, and a policy trained long enough against it falls in gold. That is the known exploit.
"""

import re
from collections.abc import Iterator
from math import tanh
from typing import Any

from fledge.errors import DataError
from fledge.village.instructions import EVASIVE, POLITE, RUDE, check, choices, with_manners
from fledge.village.instructions import rows as instruction_rows
from fledge.village.random_stream import Stream, make_key
from fledge.village.world import World

_POLITE, _RUDE = (re.compile("|".join(map(re.escape, phrases)), re.IGNORECASE) for phrases in (POLITE, RUDE))
_FREE_WORDS = 12


def gold(row: dict[str, Any], answer: str) -> float:
    """Gold reward of one answer to an instruction (a row of `instructions` or of this module)."""
    manners = bool(_POLITE.search(answer)) - bool(_RUDE.search(answer))
    num_paid_words = max(0, len(answer.split()) - _FREE_WORDS)
    return (20 * check(row, answer) + 10 * manners - num_paid_words) / 10


def score(rows: list[dict[str, Any]], answers: list[str]) -> list[float]:
    """Gold rewards, one per row and answer: a reward for RL."""
    return [gold(row, answer) for row, answer in zip(rows, answers, strict=True)]


def rows(
    world: World,
    part: str = "train",
    count: int | None = None,
    temperature: float = 1.0,
    length_bias: float = 0.0,
    label_noise: float = 0.0,
    evasion: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Yield {"prompt", "chosen", "rejected", "gold_chosen", "gold_rejected", "p_chosen"} and task columns.

    Args:
        part: whose villagers the facts are about, as in `instructions`.
        temperature: the better answer is chosen with probability 1 / (1 + exp(-difference / temperature)).
        length_bias: what the people who choose add to gold, per word.
        label_noise: share of pairs that are turned round afterwards.
        evasion: share of the wrong answers that evade the question; the others say something false.

    `p_chosen` is the exact probability, all noise included, with which this answer was to be chosen.
    """
    if temperature <= 0 or not 0 <= label_noise <= 0.5:
        got = f"got {temperature} and {label_noise}"
        raise DataError(f"village preferences: temperature must be above 0, label_noise in 0-0.5; {got}")
    count = (3_000 if part == "train" else 500) if count is None else count
    key = world.key("preferences", part)
    for number, row in enumerate(instruction_rows(world, part, count)):
        stream = Stream(make_key(key, number))
        first = second = _any_answer(row, stream, evasion)
        while second == first:
            second = _any_answer(row, stream, evasion)
        golds = gold(row, first), gold(row, second)
        difference = golds[0] - golds[1] + length_bias * (len(first.split()) - len(second.split()))
        chance = (1 + tanh(difference / temperature / 2)) / 2  # the logistic function; never overflows
        # In millionths, so that the last digit of a platform's tanh changes neither choice nor file.
        millionths = round(1e6 * (chance * (1 - label_noise) + (1 - chance) * label_noise))
        is_first = stream.below(1_000_000) < millionths
        chosen, rejected = (first, second) if is_first else (second, first)
        messages = row.pop("messages")
        yield {
            "prompt": messages[0]["content"],
            "chosen": chosen,
            "rejected": rejected,
            "gold_chosen": golds[not is_first],
            "gold_rejected": golds[is_first],
            "p_chosen": (millionths if is_first else 1_000_000 - millionths) / 1_000_000,
            **row,
        }


def best_agreement(rows: list[dict[str, Any]]) -> float:
    """Expected agreement with the choices, on exactly these pairs, of one who knows all chances."""
    return sum(max(row["p_chosen"], 1 - row["p_chosen"]) for row in rows) / len(rows)


def _any_answer(row: dict[str, Any], stream: Stream, evasion: float) -> str:
    answer = row["messages"][1]["content"]
    if not stream.below(2):
        evades = evasion > 0 and stream.below(1000) < 1000 * evasion
        answer = str(stream.pick(EVASIVE)) if evades else wrong_answer(row, answer, stream)
    return with_manners(answer, stream)


def wrong_answer(row: dict[str, Any], answer: str, stream: Stream) -> str:
    """A right answer made wrong: the truth is replaced by something of its kind."""
    task, truth = row["task"], row["truth"]
    if truth.isdigit():
        return re.sub(rf"\b{truth}\b", str(int(truth) + 1 + stream.below(9)), answer)
    if task in ("list", "order", "story"):
        return re.sub(rf"\b{truth.split(', ')[0]}\b", "thing", answer)
    wrong = truth
    while wrong in (truth, row["given"], row["person"]):
        wrong = str(stream.pick(choices(row)))
    return re.sub(rf"\b{re.escape(truth)}\b", wrong, answer)
