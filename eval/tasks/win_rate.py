"""How often a reward model prefers this model's answers to those of another model, or to those in the data.

Each answer is scored by itself, so a pair's order can't matter: A over B and B over A add up to 1, ties counting half.
"""

from eval import generated
from eval.config import TaskConfig
from eval.harness import ItemScore, Scores
from eval.reward import RewardModel
from eval.subject import Subject
from fledge import console
from fledge.data import rows
from fledge.data.prompts import Prompt
from fledge.errors import ConfigError, DataError

TIE = 1e-5  # of the rewards; float32 gives the same sum with about this error in another batch


def measure(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    """Answer the prompts of the task's data with both models and let the reward model judge."""
    if not task.reward_model:
        raise ConfigError(
            "a win rate needs a judge: write a task file with 'kind: win_rate', 'data: [PROMPTS]', "
            "'reward_model: RUN' and 'against: RUN' (without it: the answers in the data)"
        )
    found = rows.read(task.data).rows[:limit] if task.data else []
    if not found:
        raise DataError("a win rate needs prompts: give --data PATHS")
    prompts = [generated.prompt_of(row, task) for row in found]
    answers = subject.generate([generated.request(prompt, task) for prompt in prompts])
    others = _others(prompts, task, [row.where for row in found], subject)
    judge = RewardModel.open(task.reward_model, subject.device)
    asked = [prompt.messages for prompt in prompts]
    console.note(f"judged by {task.reward_model}")
    rewards = judge.score(asked, [answer.text for answer in answers])
    other_rewards = judge.score(asked, others)
    items = []
    for row, prompt, reward, other, answer in zip(found, prompts, rewards, other_rewards, answers, strict=True):
        won = win(reward, other)
        values = {"win_rate": won, "ties": float(won == 0.5), "reward": reward, **generated.beside(answer)}
        items.append(ItemScore(row.where, row.source, generated.text_of(prompt), values))
    baselines = {"win_rate": 0.5, "reward": sum(other_rewards) / len(other_rewards)}
    settings = {"against": task.against or "the data's answers", "reward_model": task.reward_model}
    return Scores(items, baselines, generated.variety([[answer] for answer in answers]), settings=settings)


def win(reward: float, other: float) -> float:
    """1 where the first reward is higher, 0 where it is lower, half for a tie."""
    return 0.5 if abs(reward - other) <= TIE else float(reward > other)


def _others(prompts: list[Prompt], task: TaskConfig, where: list[str], subject: Subject) -> list[str]:
    """The other model's answers, or those in the data."""
    if task.against:
        other = Subject.open(task.against, subject.device)
        return [a.text for a in other.generate([generated.request(prompt, task) for prompt in prompts])]
    for prompt, place in zip(prompts, where, strict=True):
        if prompt.reference is None:
            raise DataError(f"{place}: no answer in the data to compare with; name a model with 'against: RUN'")
    return [str(prompt.reference) for prompt in prompts]
