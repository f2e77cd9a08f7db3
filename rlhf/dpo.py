"""`fledge rlhf dpo`: a model taught by pairs of answers which of the two people chose.

Shapes: B pairs, T tokens.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch

from eval import intervals
from finetune import published
from fledge import console, device, errors, plots, trainer_bridge
from fledge.data import preferences
from fledge.data import sources as src
from fledge.data.batch_order import BatchOrder
from fledge.data.preferences import Pair
from fledge.errors import ConfigError, DataError
from fledge.metrics_log import read_metrics
from fledge.models.classifier import pad
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer
from fledge.trainer_bridge import Batch, Job, Progress
from rlhf import prompts, told
from rlhf.agreement import wins
from rlhf.config import DpoConfig
from rlhf.policy import Answers, Policy
from rlhf.prompts import Asked
from rlhf.pupil import Pupil
from tokenizer.chat import render

MAX_LENGTH = 1024  # tokens; longer pairs are rare, and hub models have contexts that fill any memory
ASKED_TOGETHER = 256  # pairs, between two movements of the progress bar
PROMPT_SHARE = 0.25  # of the length that a prompt keeps, however long the answers are


@dataclass
class Example:
    """A pair as ids, with what the reference thinks of it."""

    pair: Pair
    prompt: list[int]
    chosen: list[int]  # with the id that ends it, unless it was cut
    rejected: list[int]
    reference: tuple[float, float] = (math.nan, math.nan)  # log-probabilities of chosen and rejected, nats

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Examples:
    """Pairs as ids."""

    examples: list[Example]
    num_cut_prompts: int  # the beginning of the prompt is left out
    num_cut_answers: int  # an answer is so long that its end is left out
    num_dropped: int  # what is left of both answers is the same


def run(settings: DpoConfig, folder: RunFolder) -> dict[str, Any]:
    """Teach a model in a run folder; see DpoConfig."""
    pupil = Pupil.open(settings)
    length = settings.max_length or min(pupil.context, MAX_LENGTH)
    if length > pupil.context:
        raise ConfigError(f"--max-length {length}: the model's context is {pupil.context} tokens; give at most that")
    data = preferences.read(settings.data, settings.validation.share, settings.max_bad_share)
    train = examples_of(pupil.tokenizer, pupil.stop_ids[0], data.train, length)
    held_out = examples_of(pupil.tokenizer, pupil.stop_ids[0], data.held_out[: settings.validation.pairs], length)
    asked = _asked(pupil, data.held_out)
    settings = pupil.settings = trainer_bridge.resolved(settings, len(train.examples))
    folder.freeze(settings)
    folder.track_with(settings.run.trackers)
    read = {"sources": src.describe(data.sources), "pairs": len(data.train)}
    published.record(folder, settings.run, pupil.path, pupil.tokenizer, pupil.model, data=read)
    _announce(train)
    published.announce(pupil.path, pupil.model, settings, "pairs")
    pupil.model.to(settings.run.device)
    parents = _ask_reference(pupil, train.examples, held_out.examples)
    last: dict[str, Any] = {}

    def check(model: Any) -> dict[str, float]:
        last.update(pupil.measure(model, asked[: settings.validation.prompts], "check"))
        return {"validation_kl": last["kl"], **{name: last[name] for name in ("stopped_share", "answer_tokens")}}

    job = Job(
        model=pupil.model,
        examples=train.examples,
        lengths=[one.length for one in train.examples],
        collate=collate,
        loss=None,
        num_targets=lambda batch: len(batch["input_ids"]) // 2,
        check=check,
        held_out=sorted(held_out.examples, key=lambda one: one.length),
        sample=lambda model, step: last["samples"],
        tokenizer=pupil.tokenizer,
        arguments={
            "loss_type": [settings.loss.kind],
            "beta": settings.loss.beta,
            "label_smoothing": settings.loss.label_smoothing,
            "disable_dropout": not settings.lora.dropout,  # of all or of none
        },
    )
    progress = trainer_bridge.train(job, settings, folder, "trl-dpo")
    return _finish(settings, folder, pupil, train, held_out, parents, asked, progress)


# --- pairs as ids ---


def examples_of(tokenizer: TextTokenizer, stop_id: int, pairs: Sequence[Pair], max_length: int) -> Examples:
    """Pairs by the chat template, or as plain text without one; each answer ends as the policy ends its own.

    A prompt that is too long for its answers loses its beginning, down to a quarter of the length; only then an
    answer loses its end, and with it the id that ends it.
    Raises:
        DataError: nothing is left, or the chat template refuses a conversation.
    """
    examples: list[Example] = []
    cut_prompts = cut_answers = dropped = 0
    with console.progress("tokenising", len(pairs), "pairs") as bar:
        for pair in pairs:
            with errors.of_row(pair.where):
                prompt = prompts.ids_of(pair.prompt, tokenizer)
                chosen, rejected = (
                    _answer_ids(tokenizer, stop_id, pair, answer, prompt) for answer in (pair.chosen, pair.rejected)
                )
            room = max_length - max(len(chosen), len(rejected))
            kept = min(len(prompt), max(room, round(PROMPT_SHARE * max_length), 1))
            left = max_length - kept
            cut_prompts += kept < len(prompt)
            cut_answers += max(len(chosen), len(rejected)) > left
            if chosen[:left] == rejected[:left]:
                dropped += 1
            else:
                examples.append(Example(pair, prompt[-kept:], chosen[:left], rejected[:left]))
            bar.advance()
    if not examples:
        raise DataError(
            f"{pairs[0].where}: of none of these {len(pairs)} pairs enough fits into {max_length} tokens to tell the "
            "answers apart; give a larger --max-length"
        )
    return Examples(examples, cut_prompts, cut_answers, dropped)


def _answer_ids(tokenizer: TextTokenizer, stop_id: int, pair: Pair, answer: str, prompt: Sequence[int]) -> list[int]:
    """What the policy would have had to write for this answer, with the id that ends it."""
    if tokenizer.chat_template is None:
        return [*tokenizer.encode(answer), stop_id]
    whole = render(tokenizer, [*pair.prompt, {"role": "assistant", "content": answer}])
    is_own = [flag and place >= len(prompt) for place, flag in enumerate(whole.is_supervised)]
    return list(itertools.compress(whole.ids, is_own))


def collate(examples: Sequence[Example]) -> Batch:
    """A batch as TRL reads it: (2B, T), first the chosen answers, then the rejected ones, padded at the right."""
    both = _both(examples)
    ids_BT, is_real_BT = pad(both.ids, 0)
    is_answer_BT = is_real_BT.clone()
    for row, prompt in zip(is_answer_BT, both.prompts, strict=True):
        row[: len(prompt)] = 0
    chosen, rejected = zip(*(one.reference for one in examples), strict=True)
    return {
        "input_ids": ids_BT,
        "attention_mask": is_real_BT,
        "completion_mask": is_answer_BT,
        "ref_chosen_logps": torch.tensor(chosen),
        "ref_rejected_logps": torch.tensor(rejected),
        "num_tokens": int(is_real_BT.sum()),
    }


def _both(examples: Sequence[Example]) -> Answers:
    """First the chosen answers, then the rejected ones."""
    return Answers(
        [one.prompt for one in examples] * 2, [one.chosen for one in examples] + [one.rejected for one in examples]
    )


# --- log-probabilities ---


def _ask_reference(pupil: Pupil, train: Sequence[Example], held_out: Sequence[Example]) -> list[tuple[float, float]]:
    """Note what the model thinks of the pairs before it learns, once; of those alone that the run will meet.

    Returns:
        what it thinks of the held-out pairs in float32, in which the saved model is measured beside it.
    """
    settings = pupil.settings
    order = BatchOrder(
        len(train),
        settings.batch.examples,
        settings.batch.examples,
        settings.run.max_steps,
        settings.run.seed,
        [one.length for one in train],
    )
    met = [train[number] for number in sorted(set(itertools.chain(*order)))] + list(held_out)
    model = pupil.model  # new adapters change nothing
    policy = Policy(model.get_base_model() if hasattr(model, "get_base_model") else model)
    dtype = device.torch_dtype(settings.run.dtype)  # as the trainer's own forward pass
    with (
        console.progress("what the reference thinks", len(met), "pairs") as bar,
        torch.autocast(settings.run.device, dtype, enabled=dtype != torch.float32),
    ):
        for start in range(0, len(met), ASKED_TOGETHER):
            some = met[start : start + ASKED_TOGETHER]
            for one, found in zip(some, logprobs(policy, some), strict=True):
                one.reference = found
            bar.advance(len(some))
    return logprobs(policy, held_out) if dtype != torch.float32 else [one.reference for one in held_out]


def logprobs(policy: Policy, examples: Sequence[Example]) -> list[tuple[float, float]]:
    """log-probabilities of the chosen and of the rejected answer, nats."""
    sums = [float(logprob_N.sum()) for logprob_N in policy.scored(_both(examples))]
    return list(zip(sums[: len(examples)], sums[len(examples) :], strict=True))


# --- results ---


def _asked(pupil: Pupil, pairs: Sequence[Pair]) -> list[Asked]:
    """The first held-out prompts, each once, that leave room for an answer: as many as a measurement wants."""
    room, wanted = pupil.context - pupil.settings.sampling.max_new_tokens, pupil.settings.validation
    found = {pair.hash: pair.prompt for pair in pairs}
    asked = (Asked({}, messages, prompts.ids_of(messages, pupil.tokenizer)) for messages in found.values())
    fitting = list(itertools.islice((one for one in asked if len(one.ids) <= room), max(wanted.prompts, wanted.at_end)))
    if not fitting:
        raise DataError(
            f"{pairs[0].where}: no held-out prompt leaves room for an answer of "
            f"{pupil.settings.sampling.max_new_tokens} tokens in the context of {pupil.context}; lower "
            "--sampling.max-new-tokens"
        )
    return fitting


def _announce(train: Examples) -> None:
    tokens = sum(one.length for one in train.examples) / len(train.examples)
    console.note(
        f"{len(train.examples)} pairs of {tokens:.0f} tokens on average; {train.num_cut_prompts} lost the beginning of "
        f"their prompt and {train.num_cut_answers} the end of an answer to the length limit, {train.num_dropped} are "
        "left out because no difference was left"
    )


def _finish(
    settings: DpoConfig,
    folder: RunFolder,
    pupil: Pupil,
    train: Examples,
    held_out: Examples,
    parents: list[tuple[float, float]],
    asked: list[Asked],
    progress: Progress,
) -> dict[str, Any]:
    """Publish the model and measure it as it was written.

    Returns:
        the `--json` object of `rlhf dpo`.
    """
    result: dict[str, Any] = {
        "steps": progress.step,
        "best_step": progress.best_step,
        "validation_loss_before": _loss_of_parent(settings),
        "validation_loss": progress.best_value,
        "pairs": len(train.examples),
        "cut_prompts": train.num_cut_prompts,
        "cut_answers": train.num_cut_answers,
        "left_out": train.num_dropped,
        "tokens": progress.tokens,
        "loop_s": round(progress.elapsed_s, 3),
    }
    with folder.publish("model") as partial:
        proving = [one.prompt + one.chosen for one in held_out.examples[:4]]
        saved, proof = published.write(partial, pupil.model, pupil.tokenizer, pupil.stop_ids, proving)
        saved = saved.to(settings.run.device)
        answered = pupil.measure(saved, asked[: settings.validation.at_end], "end")
        result |= proof | _of_pairs(saved, held_out.examples, parents, settings.loss.beta)
        result |= {name: answered[name] for name in ("kl", "stopped_share", "answer_tokens")}
        lines = _lines(result)
        published.card(folder, partial, lines)
    levels = {"parent": result["validation_loss_before"]}
    plots.loss_curve(read_metrics(folder.path), folder.path / "loss.png", levels, "loss", "nats/pair")
    best = [sample for sample in folder.samples() if sample["step"] == progress.best_step]
    told.write_summary(folder, lines, best, f"Talk to it: fledge chat {folder.path}; curve: {folder.path}/loss.png")
    return result


def _loss_of_parent(settings: DpoConfig) -> float:
    """The loss where policy and reference agree, which needs no measurement."""
    return {"ipo": 0.25 / settings.loss.beta**2, "hinge": 1.0}.get(settings.loss.kind, math.log(2))


def _of_pairs(
    model: Any, examples: Sequence[Example], parents: Sequence[tuple[float, float]], beta: float
) -> dict[str, Any]:
    """How the implicit rewards, beta log(policy / reference), tell chosen from rejected; beside the longer answer."""
    rise_N2 = np.array(logprobs(Policy(model), examples)) - np.array(parents)
    margin_N = rise_N2[:, 0] - rise_N2[:, 1]
    longer_N = np.array([len(one.pair.chosen.split()) - len(one.pair.rejected.split()) for one in examples])
    accuracy = intervals.clustered_proportion(wins(margin_N), [one.pair.hash for one in examples])
    return {
        "held_out": len(examples),
        "accuracy": intervals.as_json(accuracy),
        "margin": beta * float(margin_N.mean()),
        "chosen_rise": float(rise_N2[:, 0].mean()),
        "baselines": {"longer": fmean(wins(longer_N))},
    }


def _lines(result: dict[str, Any]) -> list[str]:
    """The results in sentences."""
    chosen_rise = result["chosen_rise"]
    lines = [
        f"held-out loss: {result['validation_loss']:.4f} nats/pair at step {result['best_step']}, "
        f"{result['validation_loss_before']:.4f} before",
        f"implicit rewards tell the chosen answer of {result['held_out']} held-out pairs: "
        f"{intervals.told(result['accuracy'], '.1%')}, mean margin {result['margin']:.3f}; by length alone "
        f"{max(result['baselines']['longer'], 1 - result['baselines']['longer']):.1%}",
        f"chosen answers are {abs(chosen_rise):.2f} nats {'more' if chosen_rise > 0 else 'less'} likely than to the "
        "reference",
        told.distance(result),
        f"{result['pairs']} pairs, {console.format_count(result['tokens'])} tokens read in {result['steps']} steps",
    ]
    if result["validation_loss"] >= result["validation_loss_before"]:
        lines.append("the held-out loss did not fall: this model knows no better than its parent what is preferred")
    return lines + published.sentences(result)
