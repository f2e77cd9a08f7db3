"""`fledge rlhf grpo`: a model trained on rewards, each answer against others to the same prompt."""

import math
from statistics import fmean
from typing import Any

from torch import nn

from finetune import published
from fledge import config, console, plots, trainer_bridge
from fledge.data import sources as src
from fledge.metrics_log import read_metrics
from fledge.rundir import RunFolder
from fledge.trainer_bridge import Job, Progress
from rlhf import prompts, scoring, told
from rlhf.config import GrpoConfig
from rlhf.prompts import Asked, Prompts
from rlhf.pupil import Pupil
from rlhf.scoring import Reward

PATIENCE = 3  # batches of answers in a row from which nothing can be learned, until that is said


def run(settings: GrpoConfig, folder: RunFolder) -> dict[str, Any]:
    """Train a model in a run folder; see GrpoConfig."""
    pupil = Pupil.open(settings)
    room = pupil.context - settings.sampling.max_new_tokens
    asked = prompts.read(settings.prompts, pupil.tokenizer, room, settings.validation.share, settings.max_bad_share)
    settings = pupil.settings = _resolved(settings, len(asked.train))
    reward = scoring.open_reward(settings.reward, settings.run.device)
    scoring.announce(reward, pupil.tokenizer)
    folder.freeze(settings)
    folder.track_with(settings.run.trackers)
    facts = {
        "data": {"sources": src.describe(asked.sources), "prompts": len(asked.train)},
        "rewards": [reward.identity],
    }
    published.record(folder, settings.run, pupil.path, pupil.tokenizer, pupil.model, **facts)
    _announce(settings, asked)
    published.announce(pupil.path, pupil.model, settings, "answers")
    pupil.model.to(settings.run.device)
    at_end = asked.held_out[: settings.validation.at_end]
    before = published.before(folder, lambda: pupil.measure(pupil.model, at_end, "end", reward))
    watch = Watch(settings)
    last: dict[str, Any] = {}

    def write(model: nn.Module, ids: list[list[int]], step: int) -> list[list[int]]:
        return [answer.ids for answer in pupil.write(model, ids, settings.group.at_once, "step", step)]

    def judge(chosen: list[Asked], answers: list[list[int]]) -> list[float]:
        scores = reward.score([one.row for one in chosen], [pupil.text(ids) for ids in answers])
        penalties = [settings.scores.unfinished_penalty * (ids[-1] not in pupil.stop_ids) for ids in answers]
        return watch.of_training([score - cost for score, cost in zip(scores, penalties, strict=True)])

    def check(model: Any) -> dict[str, float]:
        # From the other end than those that the model is measured by in the end: other prompts, where there are enough.
        last.update(pupil.measure(model, asked.held_out[-settings.validation.prompts :], "check", reward))
        watch.of_held_out(last)
        return {"validation_reward": fmean(last["scores"]), "validation_kl": last["kl"]}

    job = Job(
        model=pupil.model,
        examples=asked.train,
        collate=lambda chosen: [{"prompt": one.ids, "example": one} for one in chosen],
        loss=None,
        num_targets=lambda batch: 1,
        check=check,
        best="validation_reward",
        lower_is_better=False,
        sample=lambda model, step: last["samples"],
        indivisible=settings.group.steps * settings.group.passes,
        tokenizer=pupil.tokenizer,
        arguments=_arguments(settings),
        write=write,
        judge=judge,
    )
    # TRL takes from the model which ids end an answer.
    pupil.model.generation_config.eos_token_id = list(pupil.stop_ids)
    progress = trainer_bridge.train(job, settings, folder, "trl-grpo")
    return _finish(settings, folder, pupil, asked, reward, progress, before)


def _resolved(settings: GrpoConfig, num_prompts: int) -> GrpoConfig:
    """Plain values; the steps end where no answers are left over, so that more can be asked for later."""
    group = settings.group
    settings = trainer_bridge.resolved(settings, num_prompts * group.answers * group.passes)
    unit, steps = group.steps * group.passes, settings.run.max_steps
    whole = math.ceil(steps / unit) * unit
    if whole != steps:
        console.note(f"{whole} steps instead of {steps}: {unit} of them share a batch of answers")
    return config.with_values(settings, {"run.max_steps": whole})


def _arguments(settings: GrpoConfig) -> dict[str, Any]:
    """TRL's names for the settings; it counts microbatches where we count steps."""
    batch = settings.batch
    num_microbatches = batch.examples // (batch.microbatch or batch.examples)
    return {
        "num_generations": settings.group.answers,
        "steps_per_generation": settings.group.steps * num_microbatches,
        "num_iterations": settings.group.passes,
        "temperature": settings.sampling.temperature,
        "loss_type": settings.loss.kind,
        "max_completion_length": settings.sampling.max_new_tokens,  # what dr_grpo divides by
        "beta": settings.loss.beta,
        "epsilon": settings.loss.clip,
        "scale_rewards": settings.loss.scale,
        "disable_dropout": True,  # the probabilities are those that the answers were drawn with
    }


class Watch:
    """Says once what keeps a run from learning."""

    def __init__(self, settings: GrpoConfig) -> None:
        self._settings = settings
        self._num_idle = 0
        self._told: set[str] = set()

    def of_training(self, scores: list[float]) -> list[float]:
        """Look at the rewards of a batch of answers, group after group; gives them back."""
        size = self._settings.group.answers
        groups = [scores[start : start + size] for start in range(0, len(scores), size)]
        self._num_idle = 0 if any(len(set(group)) > 1 for group in groups) else self._num_idle + 1
        if self._num_idle == PATIENCE:
            self._tell(
                f"in {PATIENCE} batches all answers to a prompt earned the same, so nothing is learned from them: take "
                "a reward that tells them apart, easier prompts, more --group.answers or a higher "
                "--sampling.temperature"
            )
        return scores

    def of_held_out(self, measured: dict[str, Any]) -> None:
        """Look at the answers of a check."""
        if measured["stopped_share"] == 0:
            self._tell(
                f"no answer to the held-out prompts ends by itself within {self._settings.sampling.max_new_tokens} "
                "tokens: rewards are of answers that were cut off; raise --sampling.max-new-tokens, or teach the model "
                "to stop with fledge finetune instruct"
            )

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            console.warn(what)


def _announce(settings: GrpoConfig, asked: Prompts) -> None:
    group, written = settings.group, settings.batch.examples * settings.group.steps
    console.note(
        f"{len(asked.train)} prompts to train on, {len(asked.held_out)} held out; {written} answers at a time, "
        f"{group.answers} to a prompt, for {group.steps * group.passes} steps of {settings.batch.examples}"
    )


def _finish(
    settings: GrpoConfig,
    folder: RunFolder,
    pupil: Pupil,
    asked: Prompts,
    reward: Reward,
    progress: Progress,
    before: dict[str, Any],
) -> dict[str, Any]:
    """Publish the model and measure it as it was written, beside its parent.

    Returns:
        the `--json` object of `rlhf grpo`.
    """
    held_out = asked.held_out[: settings.validation.at_end]
    result: dict[str, Any] = {"steps": progress.step, "best_step": progress.best_step}
    with folder.publish("model") as partial:
        proving = [one.ids for one in held_out[:4]]
        saved, proof = published.write(partial, pupil.model, pupil.tokenizer, pupil.stop_ids, proving)
        after = pupil.measure(saved.to(settings.run.device), held_out, "end", reward)
        result |= {
            **told.compared("reward", before["scores"], after["scores"]),
            **{name: after[name] for name in ("kl", "stopped_share", "answer_tokens")},
            "held_out": len(held_out),
            "prompts": len(asked.train),
            "too_long": asked.num_too_long,
            "tokens": progress.tokens,
            "loop_s": round(progress.elapsed_s, 3),
            **proof,
        }
        lines = _lines(settings, reward, result)
        published.card(folder, partial, lines)
    plots.reinforcement(read_metrics(folder.path), folder.path / "reward.png")
    last = f"Talk to it: fledge chat {folder.path}; curves: {folder.path}/reward.png"
    told.write_summary(folder, lines, after["samples"], last)
    return result


def _lines(settings: GrpoConfig, reward: Reward, result: dict[str, Any]) -> list[str]:
    """The results in sentences."""
    num_answers = result["steps"] * settings.batch.examples // settings.group.passes
    num_prompts = min(result["prompts"], num_answers // settings.group.answers)
    lines = [
        told.gained(f"reward ({reward.name})", result),
        told.distance(result),
        f"{num_answers} answers to {num_prompts} prompts, "
        f"{console.format_count(result['tokens'])} tokens; the weights are those of step {result['best_step']}, the "
        "best by held-out reward",
    ]
    low, high = result["reward_gain"]["low"] or 0, result["reward_gain"]["high"]
    if high is not None and high < 0:
        lines.append("the reward fell: the interval of the difference lies below 0")
    elif low <= 0:
        lines.append("the interval of the difference holds 0: it is not shown that anything was learned")
    return lines + published.sentences(result)
