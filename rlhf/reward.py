"""`fledge rlhf reward`: preferences and any model to a reward model, measured beside simple baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from eval.reward import RewardModel
from finetune import calibration, published
from fledge import console, errors, plots, trainer_bridge
from fledge.data import preferences
from fledge.data import sources as src
from fledge.data.preferences import Pair
from fledge.errors import DataError
from fledge.metrics_log import read_metrics
from fledge.models import adapters, classifier
from fledge.models.classifier import pad
from fledge.models.folder import find_model
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer
from fledge.trainer_bridge import Batch, Job, Progress
from rlhf import preference_baselines, reward_verdict
from rlhf.config import RewardConfig


@dataclass(frozen=True, slots=True)
class Row:
    """Both conversations of a pair as ids."""

    chosen: list[int]
    rejected: list[int]
    margin: float  # by which the chosen one should lead at least


def run(settings: RewardConfig, folder: RunFolder) -> dict[str, Any]:
    """Train and measure a reward model in a run folder; see RewardConfig."""
    data = preferences.read(settings.data, settings.test_share, settings.max_bad_share)
    train, validation = preferences.split(data.train, settings.validation.share, settings.test_share)
    if not train:
        raise DataError(f"{', '.join(settings.data)}: nothing to train on; give pairs for three prompts or more")
    test = data.held_out
    if settings.margin and not all(pair.strength is not None for pair in train):
        raise DataError(f"--margin {settings.margin:g}: not all pairs have a '{preferences.STRENGTH}'; take 0")
    torch.manual_seed(settings.run.seed)
    own = classifier.from_base(settings.model, ["reward"])
    made = RewardModel(own)
    rows = encode(made, train, settings.margin)
    checked = encode(made, validation)
    settings = trainer_bridge.resolved(settings, len(rows))
    folder.freeze(settings)
    folder.track_with(settings.run.trackers)
    read = {"sources": src.describe(data.sources), "pairs": len(data.train) + len(data.held_out)}
    published.record(folder, settings.run, find_model(settings.model), own.tokenizer, own.model, data=read)
    facts: dict[str, Any] = {
        "train_pairs": len(train),
        "validation_pairs": len(validation),
        "duplicates": data.duplicates,
        "rejects": data.rejects,
    }
    console.note(
        f"{len(train)} pairs to train on, {len(validation)} to validate, {len(test)} to test; "
        f"{settings.run.max_steps} steps of {settings.batch.examples} ({settings.run.device}, {settings.run.dtype})"
    )
    progress = _train(settings, folder, made, rows, checked[: settings.validation.pairs])
    facts |= {"steps": progress.step, "best_step": progress.best_step}
    facts |= published.merge(own, [ids for row in checked[:16] for ids in (row.chosen, row.rejected)])
    facts["temperature"] = _calibrate(made, checked)
    reward_N2 = rewards(made, encode(made, test))
    facts["cut"] = made.num_cut
    if made.num_cut:
        console.warn(f"{made.num_cut} answers with their prompts are longer than the context: beginnings left out")
    baselines = preference_baselines.margins(train, test)
    _write(folder, test, reward_N2, baselines)
    plots.loss_curve(read_metrics(folder.path), folder.path / "loss.png", {"chance": np.log(2)}, "loss", "nats/pair")
    result = reward_verdict.give(folder, test, reward_N2[:, 0] - reward_N2[:, 1], baselines, facts)
    with folder.publish("model") as partial:
        own.save(partial)
        published.card(folder, partial, reward_verdict.sentences(result))
    return result


def encode(made: RewardModel, pairs: Sequence[Pair], margin: float = 0.0) -> list[Row]:
    """The pairs as the model reads them; margins are this times a pair's strength.

    Raises:
        DataError: the chat template refuses a conversation.
    """
    found: list[Row] = []
    with console.progress("tokenising", len(pairs), "pairs") as bar:
        for pair in pairs:
            with errors.of_row(pair.where):
                chosen, rejected = (made.ids(pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
            found.append(Row(chosen, rejected, margin * (pair.strength or 0.0)))
            bar.advance()
    return found


def rewards(made: RewardModel, rows: Sequence[Row]) -> np.ndarray:
    """float32 (N, 2): what the model gives to the chosen and to the rejected answers."""
    both = made.inner.logits([row.chosen for row in rows] + [row.rejected for row in rows])[:, 0]
    return both.reshape(2, len(rows)).T


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """A batch for TRL's reward loss: all chosen conversations, then all rejected ones, padded to the right."""
    ids_BT, is_real_BT = pad([row.chosen for row in rows] + [row.rejected for row in rows], pad_id)
    return {
        "input_ids": ids_BT,
        "attention_mask": is_real_BT,
        "margin": torch.tensor([row.margin for row in rows]),
        "num_tokens": int(is_real_BT.sum()),
    }


def _train(
    settings: RewardConfig, folder: RunFolder, made: RewardModel, rows: list[Row], validation: list[Row]
) -> Progress:
    """Train the model with TRL's loss; afterwards it has the weights of the best step."""
    own = made.inner
    own.model.to(settings.run.device)
    if settings.lora.rank:
        lora = settings.lora.model_dump()
        own.model = adapters.add_lora(own.model, **lora, seed=settings.run.seed, task="SEQ_CLS")

    def check(model: nn.Module) -> dict[str, float]:
        margin_N = np.subtract(*rewards(made, validation).T)
        loss = float(np.logaddexp(0, -margin_N).mean())
        return {"validation_loss": loss, "validation_accuracy": float((margin_N > 0).mean())}

    # TRL pads with its tokenizer's token, and tells the model so.
    roles = own.tokenizer.roles | {"pad_token": str(own.tokenizer.inner.id_to_token(own.pad_id))}
    job = Job(
        model=own.model,
        examples=rows,
        lengths=[max(len(row.chosen), len(row.rejected)) for row in rows],
        collate=lambda batch: collate(batch, own.pad_id),
        loss=None,
        num_targets=lambda batch: len(batch["margin"]),
        check=check,
        tokenizer=TextTokenizer(own.tokenizer.inner, roles, own.tokenizer.chat_template),
        arguments={
            "center_rewards_coefficient": settings.center_rewards or None,
            "disable_dropout": not settings.lora.dropout,  # of all or of none
        },
    )
    return trainer_bridge.train(job, settings, folder, "trl-reward")


def _calibrate(made: RewardModel, rows: Sequence[Row]) -> float:
    """Put into the head the temperature at which sigmoid(difference) is best as a probability on these pairs."""
    found = calibration.temperature(rewards(made, rows), np.zeros(len(rows), dtype=int))
    with torch.no_grad():
        for parameter in classifier.head(made.inner.model).parameters():
            parameter.div_(found)
    return found


def _write(folder: RunFolder, pairs: Sequence[Pair], reward_N2: np.ndarray, baselines: dict[str, np.ndarray]) -> None:
    """Write what the model and the baselines say of each test pair."""
    rows = (
        {
            "where": pair.where,
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "reward_chosen": float(reward_N2[n, 0]),
            "reward_rejected": float(reward_N2[n, 1]),
            "baselines": {name: float(margin_N[n]) for name, margin_N in baselines.items()},
        }
        for n, pair in enumerate(pairs)
    )
    published.write_rows(folder, reward_verdict.PREDICTIONS, rows)
