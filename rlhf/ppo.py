"""`fledge rlhf ppo`: a model trained by PPO against a reward."""

import time
from statistics import fmean, stdev
from typing import Any

import torch

from finetune import published
from fledge import checkpoints, config, console, device, plots, processes
from fledge.deepspeed_engine import require_deepspeed
from fledge.errors import ConfigError, RunFailed
from fledge.metrics_log import read_metrics
from fledge.models import folder as model_folder
from fledge.rundir import RunFolder
from rlhf import diagnosis, losses, rollout, told
from rlhf.cast import Cast, share
from rlhf.config import PpoConfig
from rlhf.learning import Learner
from rlhf.session import Session


def run(settings: PpoConfig, folder: RunFolder) -> dict[str, Any]:
    """Train a model in a run folder; see PpoConfig."""
    settings = _plain_values(settings)
    processes.set_patience(settings.engine.patience)
    torch.set_num_threads(settings.run.threads)
    torch.manual_seed(settings.run.seed)
    cast = Cast.open(settings)
    folder.freeze(settings)
    folder.track_with(settings.run.trackers)
    cast.record(folder)
    session = Session(settings, *cast.trained())
    if folder.resumes_from:
        session.restore(folder.resumes_from)
    _announce(cast)
    before = published.before(folder, lambda: _measure(cast, settings.validation.at_end, "end"))
    _loop(cast, session, folder)
    return _finish(cast, session, folder, before)


def _plain_values(settings: PpoConfig) -> PpoConfig:
    """The settings with everything that `auto` and 0 threads stand for, as plain values.

    Raises:
        ConfigError: the processes can't share a minibatch, or what was asked for runs in one process only.
    """
    count, kind = processes.size(), settings.engine.kind
    if kind == "auto":
        kind = "deepspeed" if count > 1 or settings.engine.zero is not None else "torch"
    if kind == "deepspeed":
        require_deepspeed()
        if settings.batch.minibatch % count:
            raise ConfigError(
                f"--batch.minibatch {settings.batch.minibatch} can't be shared by {count} processes; use a multiple"
            )
    elif count > 1:
        raise ConfigError(f"--engine.kind torch runs in one process, here are {count}; start it without a launcher")
    if kind == "deepspeed" and settings.lora.rank:
        raise ConfigError("--lora.rank: PPO with adapters runs on the plain engine, in one process")
    return config.with_values(settings, device.plain_values(settings.run) | {"engine.kind": kind})


def _announce(cast: Cast) -> None:
    settings, count = cast.settings, console.format_count
    parameters = sum(p.numel() for p in cast.policy.model.parameters())
    updates = settings.batch.epochs * settings.rollout.episodes // settings.batch.minibatch
    console.note(
        f"{cast.path}: {count(parameters)} parameters; {len(cast.prompts.train)} prompts to train on, "
        f"{len(cast.prompts.held_out)} held out"
    )
    console.note(
        f"{settings.run.max_steps} steps of {settings.rollout.episodes} answers and at most {updates} updates "
        f"({settings.run.device}, {settings.run.dtype}, {settings.run.threads} threads, {settings.engine.kind})"
    )


def _measure(cast: Cast, num_prompts: int, occasion: str) -> dict[str, Any]:
    """The policy's answers to held-out prompts: scores of each, and means.

    Args:
        occasion: "check", where luck helps to pick the best step, or "end": with other random numbers, and of other
            prompts where there are enough.
    """
    held_out = cast.prompts.held_out
    asked = held_out[-num_prompts:] if occasion == "check" else held_out[:num_prompts]
    mine = share(asked)
    episodes = cast.judge(mine, cast.write(mine, occasion), with_values=False)
    written, scores = [episode.answer for episode in episodes], [episode.score for episode in episodes]
    kls = [episode.kl for episode in episodes]
    found = told.measured(asked, written, kls, scores, cast.settings.validation.samples)
    if cast.gold:
        found["gold_scores"] = cast.gold.score([one.row for one in asked], [answer.text for answer in written])
    return found


def _loop(cast: Cast, session: Session, folder: RunFolder) -> None:
    """Step by step: answers, scores, learning; metrics, checks, diagnosis and checkpoints on the way."""
    settings, counters = cast.settings, session.counters
    learner = Learner(settings, session, cast.policy, cast.critic)
    history = diagnosis.History(read_metrics(folder.path), counters.step)
    steps = settings.run.max_steps
    with (
        folder.stopping_politely(),
        console.progress("PPO", steps, "steps", counters.step) as bar,
        processes.lockstep(),
    ):
        if counters.step == 0:
            history.add(_start(cast, folder), settings)
        while counters.step < steps and counters.stopped_early_at is None:
            started = time.perf_counter()
            metrics = _step(cast, session, learner)
            is_spent = 0 < settings.kl.budget < metrics["kl"]
            if is_spent:
                counters.stopped_early_at = counters.step
                console.note(f"step {counters.step}: the KL budget of {settings.kl.budget:g} nats is spent; stopping")
            is_last = counters.step == steps or is_spent
            is_best = False
            if counters.step % settings.validation.every == 0 or is_last:
                checked = _measure(cast, settings.validation.prompts, "check")
                is_best = _note_best(session, checked)
                metrics |= _checked_metrics(checked)
                for sample in checked["samples"]:
                    folder.log_sample({"step": counters.step} | sample)
            counters.elapsed_s += time.perf_counter() - started
            metrics |= {
                "elapsed_s": round(counters.elapsed_s, 3),
                "generating_share": round(counters.generating_s / counters.elapsed_s, 3),
            }
            line = {"step": counters.step} | metrics
            if counters.step % settings.run.log_every == 0 or is_last or is_best:
                folder.log(line)
            findings = history.add(line, settings)
            bar.advance(1, f"reward {metrics['reward']:.3f}  KL {metrics['kl']:.2f}")
            stops = folder.stop_requested
            if counters.step % settings.run.checkpoint_every == 0 or is_last or stops or is_best:
                _save(cast, session, folder)
            _tell(findings)
            if stops and not is_last:
                raise folder.interrupted(counters.step)


def _start(cast: Cast, folder: RunFolder) -> dict[str, Any]:
    """Where the run begins, as the line of step 0: what the checks say of the parent."""
    checked = _measure(cast, cast.settings.validation.prompts, "check")
    for sample in checked["samples"]:
        folder.log_sample({"step": 0} | sample)
    line = {"step": 0, "reward": fmean(checked["scores"]), "kl": checked["kl"], "updates": 0}
    line |= {name: checked[name] for name in ("answer_tokens", "stopped_share")} | _checked_metrics(checked)
    folder.log(line)
    return line


def _step(cast: Cast, session: Session, learner: Learner) -> dict[str, Any]:
    """One step; what it measured."""
    settings, counters = cast.settings, session.counters
    started = time.perf_counter()
    asked = share(cast.training_prompts(counters.step))
    written = cast.write(asked, "step", counters.step)
    counters.generating_s += time.perf_counter() - started
    episodes = cast.judge(asked, written, with_values=True)
    lesson = rollout.lesson_of(
        episodes, session.scale, session.kl.weight, settings.scores, settings.kl.estimator, settings.advantage
    )
    rate = session.set_learning_rates()
    learned = learner.learn(lesson)
    kl, is_token = fmean(episode.kl for episode in episodes), lesson.is_token_BN
    metrics = {
        "reward": fmean(episode.score for episode in episodes),
        "kl": kl,
        "kl_weight": session.kl.weight,
        "answer_tokens": fmean(len(episode.answer.ids) for episode in episodes),
        "stopped_share": fmean(episode.answer.has_stopped for episode in episodes),
        **learned.metrics(),
        "explained_variance": losses.explained_variance(lesson.value_BN[is_token], lesson.return_BN[is_token]),
        "learning_rate": rate,
    }
    session.kl.update(kl, len(episodes))
    counters.step += 1
    counters.updates += learned.updates
    counters.episodes += len(episodes)
    counters.tokens += sum(len(episode.answer.ids) for episode in episodes)
    return metrics


def _note_best(session: Session, checked: dict[str, Any]) -> bool:
    counters, reward = session.counters, fmean(checked["scores"])
    if counters.best_reward is not None and reward <= counters.best_reward:
        return False
    counters.best_step, counters.best_reward = counters.step, reward
    return True


def _checked_metrics(checked: dict[str, Any]) -> dict[str, float]:
    found = {"validation_kl": checked["kl"]}
    for name, scores in (("reward", checked["scores"]), ("gold_reward", checked.get("gold_scores"))):
        if scores:
            found[f"validation_{name}"] = fmean(scores)
        if scores and len(scores) > 1:
            found[f"validation_{name}_error"] = stdev(scores) / len(scores) ** 0.5
    return found


def _tell(findings: list[diagnosis.Finding]) -> None:
    """Say what is going wrong.

    Raises:
        RunFailed: it can't get well again.
    """
    for finding in findings:
        if finding.is_fatal:
            raise RunFailed(finding.text)
        console.warn(finding.text)


def _save(cast: Cast, session: Session, folder: RunFolder) -> None:
    with folder.checkpoint(session.counters.step) as partial:
        session.save(partial)
    checkpoints.prune(folder.checkpoints, cast.settings.run.keep_checkpoints, session.counters.best_step)


def _finish(cast: Cast, session: Session, folder: RunFolder, before: dict[str, Any]) -> dict[str, Any]:
    """Publish the best step's policy and measure it on all held-out prompts, beside its parent.

    Returns:
        the `--json` object of `rlhf ppo`.
    """
    counters = session.counters
    _take_best(session, folder)
    after = _measure(cast, cast.settings.validation.at_end, "end")
    result: dict[str, Any] = {
        "steps": counters.step,
        "best_step": counters.best_step,
        "stopped_early_at": counters.stopped_early_at,
        **told.compared("reward", before["scores"], after["scores"]),
        "kl": after["kl"],
        "stopped_share": after["stopped_share"],
        "answer_tokens": after["answer_tokens"],
        "held_out": len(after["scores"]),
        "updates": counters.updates,
        "episodes": counters.episodes,
        "tokens": counters.tokens,
        "loop_s": round(counters.elapsed_s, 3),
        "generating_share": round(counters.generating_s / max(counters.elapsed_s, 1e-9), 3),
    }
    if cast.gold:
        result |= told.compared("gold_reward", before["gold_scores"], after["gold_scores"])
    metrics = read_metrics(folder.path)
    findings = [finding.text for finding in diagnosis.of_run(metrics, cast.settings)]
    result["diagnosis"] = findings
    if processes.is_first():
        lines = _lines(cast, result)
        _publish(cast, folder, lines)
        plots.reinforcement(metrics, folder.path / "reward.png")
        samples = [sample for sample in folder.samples() if sample["step"] == result["best_step"]]
        command = "chat" if cast.tokenizer.chat_template else "pretrain sample"
        last = f"Try it: fledge {command} {folder.path}; curves: {folder.path}/reward.png"
        told.write_summary(folder, lines, samples, last)
    return result


def _take_best(session: Session, folder: RunFolder) -> None:
    best, last = session.counters.best_step, session.counters.step
    if best in (None, last):
        return
    checkpoint = folder.checkpoints / checkpoints.name_of(best)
    problem = checkpoints.damage(checkpoint)
    if problem:
        console.warn(f"{checkpoint}: {problem}; the model has the weights of the last step instead of the best")
    else:
        session.restore_actor(checkpoint)


def _publish(cast: Cast, folder: RunFolder, lines: list[str]) -> None:
    model = cast.final_model()
    with folder.publish("model") as partial:
        if hasattr(model, "hidden"):
            model_folder.save_model(model, partial)
            generation_config = cast.path / "generation_config.json"
            if generation_config.is_file():
                (partial / generation_config.name).write_bytes(generation_config.read_bytes())
        else:
            model.save_pretrained(partial)
        cast.tokenizer.save(partial)
        published.card(folder, partial, lines)


def _lines(cast: Cast, result: dict[str, Any]) -> list[str]:
    """The results in sentences."""
    lines = [
        told.gained(f"reward ({cast.reward.name})", result),
        told.distance(result),
        f"{result['episodes']} answers in {result['steps']} steps, {result['updates']} updates; the weights are those "
        f"of step {result['best_step']}, the best by held-out reward",
    ]
    if cast.gold:
        lines.insert(1, told.gained(f"gold reward ({cast.gold.name}, never learned from)", result, "gold_reward"))
    if result["stopped_early_at"]:
        lines.append(f"stopped at step {result['stopped_early_at']}: the KL budget was spent")
    return lines + [f"warning: {text}" for text in result["diagnosis"]]
