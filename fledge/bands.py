"""What a life must have learnt: each number of the demo with the limit that it has to keep."""

from collections.abc import Callable
from dataclasses import dataclass

from fledge.commands import Result

GAP_LIMIT = 0.15  # bits per byte above the floor of who knows the village
BASE_RIGHT_LIMIT = 0.1  # share of facts that a base model may answer: it has not learnt to answer
CHAT_RIGHT_LIMIT = 0.8  # share of facts about villagers whom fine-tuning never asks about
SPAM_SHARE_LIMIT = 0.95  # F1 as a share of the best possible accuracy; labels and mistakes are symmetric there
REWARD_SHARE_LIMIT = 0.9  # of the way from guessing to the best possible agreement with those who choose
FORGETTING_LIMIT = 0.1  # bits per byte of the stories that PPO may cost


@dataclass(frozen=True)
class Band:
    """One thing that the life must have learnt."""

    name: str  # begins with its stage
    value: float
    limit: float
    passed: bool


# From a stage's own result and those of the stages so far, by name.
Judge = Callable[[Result, dict[str, Result]], list[Band]]


def none(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """Nothing is asked of this stage."""
    return []


def floor(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """Pretraining comes near the least loss that is possible."""
    gap = result["validation_bits_per_byte"] - result["floor_world_bits_per_byte"]
    return [Band("pretrain bits per byte above the village's floor", gap, GAP_LIMIT, 0 <= gap <= GAP_LIMIT)]


def ngram(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """The base model is better than counting."""
    found = result["results"]["own_text"]["bits_per_byte"]
    value, counted = found["value"], found["baseline"]
    return [Band("pretrain bits per byte, below a 5-gram model's", value, counted, value < counted)]


def silent(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """The base model has not learnt to answer yet; what it answers later, fine-tuning brought out."""
    asked = _right_facts(result)
    name = "pretrain facts answered, before it learns to answer"
    return [Band(name, asked, BASE_RIGHT_LIMIT, asked <= BASE_RIGHT_LIMIT)]


def answers(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """The chat model answers questions about villagers whom fine-tuning never asked about."""
    asked = _right_facts(result)
    name = "instruct facts answered, of villagers never asked about"
    return [Band(name, asked, CHAT_RIGHT_LIMIT, asked >= CHAT_RIGHT_LIMIT)]


def spam(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """The classifier comes near the best possible one, and is above counting words and letters."""
    found, ceiling = result["test"]["f1"], result["bayes_accuracy"]
    counted = max(baseline["f1"] for baseline in result["baselines"].values())
    share = found / ceiling
    name = "classify F1 of spam, as a share of the best possible"
    return [
        Band(name, share, SPAM_SHARE_LIMIT, share >= SPAM_SHARE_LIMIT),
        Band("classify F1 of spam, not below TF-IDF's", found, counted, found >= counted),
    ]


def agreement(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """The reward model chooses as the village does."""
    share = result["share_of_ceiling"]
    name = "reward agreement, share of the way from guessing to the best possible"
    return [Band(name, share, REWARD_SHARE_LIMIT, share >= REWARD_SHARE_LIMIT), *above_length(result, earlier)]


def above_length(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """The reward model has not just learnt to count words."""
    accuracy, length = result["accuracy"], result["baselines"]["length_only"]["accuracy"]
    return [Band("reward agreement, above that of choosing by length", accuracy, length, accuracy > length)]


def gold(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """PPO raises what the village really values, not just its reward model."""
    lowest = result["gold_reward_gain"]["low"] or 0.0
    return [Band("ppo gold reward gained, low end of its interval", lowest, 0.0, lowest > 0)]


def gain(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """PPO raises its reward."""
    lowest = result["reward_gain"]["low"] or 0.0
    return [Band("ppo reward gained, low end of its interval", lowest, 0.0, lowest > 0)]


def forgetting(result: Result, earlier: dict[str, Result]) -> list[Band]:
    """PPO has not cost the model its stories."""
    before, after = (r["results"]["own_text"]["bits_per_byte"]["value"] for r in (earlier["instruct eval"], result))
    lost = after - before
    return [Band("ppo bits per byte of the stories lost", lost, FORGETTING_LIMIT, lost <= FORGETTING_LIMIT)]


def both(*judges: Judge) -> Judge:
    """All bands of several."""
    return lambda result, earlier: [band for judge in judges for band in judge(result, earlier)]


def _right_facts(result: Result) -> float:
    return float(result["results"]["village_questions"]["right_facts"]["value"])
