"""`fledge finetune classify`: labelled texts and any model to a classifier, measured beside simple baselines."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from finetune import baselines, calibration, collate, published, series, verdict
from finetune.collate import Row
from finetune.config import ClassifyConfig
from finetune.judged import Judged, read_rows
from finetune.split import Split
from finetune.split import split as split_texts
from fledge import console, trainer_bridge
from fledge.data import labelled
from fledge.data.labelled import Labelled
from fledge.data.sources import Source, describe
from fledge.data.text import digest
from fledge.errors import DataError
from fledge.models import adapters, classifier
from fledge.models.classifier import Classifier
from fledge.models.folder import find_model
from fledge.rundir import RunFolder


def run(settings: ClassifyConfig, folder: RunFolder) -> dict[str, Any]:
    """Train and measure one classifier, or with --folds and --label-budget several; see ClassifyConfig."""
    if settings.folds or settings.label_budget:
        return series.run(settings, folder)
    data = labelled.read(settings.data, settings.max_bad_share)
    positive = positive_label(data.labels, settings.positive)
    if settings.threshold != "none" and len(data.labels) != 2:
        raise DataError(f"--threshold {settings.threshold}: there are {len(data.labels)} labels; it needs two")
    split = split_texts(data.examples, settings.split, settings.validation.share)
    torch.manual_seed(settings.run.seed)
    made = classifier.from_base(settings.model, data.labels)
    train, validation, test = collate.encode(made, data.examples, split)
    num_labelled = len(train)
    train, weights = collate.balanced(train, len(data.labels), settings.balance)
    settings = trainer_bridge.resolved(settings, len(train))
    folder.freeze(settings)
    folder.track_with(settings.run.trackers)
    read = {"sources": describe(data.sources), "rows": len(data.examples)}
    published.record(folder, settings.run, find_model(settings.model), made.tokenizer, made.model, data=read)
    made.model.to(settings.run.device)
    facts: dict[str, Any] = {
        "train_rows": num_labelled,
        "validation_rows": len(validation),
        "duplicates": data.num_duplicates,
        "groups": split.num_groups,
        "cut": made.encoder.num_cut,
    }
    _announce(data, made, facts, len(test), settings.run.max_steps)
    by_hash = np.argsort([digest(data.examples[index].all_text.encode()) for index in split.validation])
    checked = [validation[n] for n in sorted(by_hash[: settings.validation.examples])]
    progress = _train(settings, folder, made, train, weights, checked)
    facts |= {"steps": progress.step, "best_step": progress.best_step}
    facts |= published.merge(made, [row.ids for row in test[:32]])
    facts |= _calibrate(settings, made, validation, positive)
    _answer(settings, folder, made, data, split, test)
    judged = Judged(read_rows(folder.path / verdict.PREDICTIONS), data.labels, positive)
    with folder.publish("model") as partial:
        made.save(partial)
        published.card(folder, partial, verdict.lines(judged) + baselines.told(num_labelled))
    return facts | verdict.give(folder, judged, _lines(made, facts, positive), ceiling(data.sources))


def positive_label(labels: Sequence[str], named: str | None) -> int | None:
    """The number of the label whose F1 is given; None where it is the mean over labels.

    Raises:
        DataError: there is no label of that name.
    """
    if named is None:
        return 1 if len(labels) == 2 else None
    if named not in labels:
        raise DataError(f"--positive {named}: no such label; there are {', '.join(labels)}")
    return list(labels).index(named)


def ceiling(sources: Sequence[Source]) -> float | None:
    """The best possible accuracy, where all texts are messages of one village; else None."""
    if not sources or any(source.kind != "village" for source in sources):
        return None
    from fledge.village import messages, spec

    specs = [spec.parse_spec(source.name) for source in sources]
    if len({(s.world, s.seed, s.dials) for s in specs}) > 1 or any(s.kind != "messages" for s in specs):
        return None
    return messages.bayes_accuracy(specs[0].make_world(), **dict(specs[0].dials))


def _announce(data: Labelled, made: Classifier, facts: dict[str, Any], num_test: int, steps: int) -> None:
    counts, first = Counter(example.label for example in data.examples), data.examples[0]
    shares = ", ".join(f"{counts[name]} '{name}'" for name in data.labels)
    console.note(f"{len(data.examples)} texts ({data.num_duplicates} duplicates left out): {shares}")
    console.note(f"row 1, {first.where}: '{first.label}' <- {first.all_text[:80]!r}")
    console.note(
        f"{facts['train_rows']} to train on, {facts['validation_rows']} to validate, {num_test} to test; {steps} steps"
    )
    if facts["cut"]:
        console.warn(f"{facts['cut']} texts are longer than the context; their ends are left out")


def _train(
    settings: ClassifyConfig,
    folder: RunFolder,
    made: Classifier,
    train: list[Row],
    weights: list[float],
    checked: list[Row],
) -> trainer_bridge.Progress:
    """Train the classifier's model, which afterwards has the weights of the best step."""
    if settings.lora.rank:
        made.model = adapters.add_lora(made.model, **settings.lora.model_dump(), seed=settings.run.seed, task="SEQ_CLS")
    elif settings.trained == "head":
        made.model.requires_grad_(False)
        classifier.head(made.model).requires_grad_(True)
    truth = torch.tensor([row.label for row in checked])

    def check(model: nn.Module) -> dict[str, float]:
        logits = torch.from_numpy(made.logits([row.ids for row in checked]))
        return {
            "validation_loss": float(nn.functional.cross_entropy(logits, truth)),
            "validation_accuracy": float((logits.argmax(1) == truth).float().mean()),
        }

    job = trainer_bridge.Job(
        model=made.model,
        examples=train,
        lengths=[len(row.ids) for row in train],
        collate=lambda batch: collate.collate(batch, made.pad_id),
        loss=collate.summed_loss(weights),
        num_targets=lambda batch: len(batch["labels"]),
        check=check if checked else None,
    )
    return trainer_bridge.train(job, settings, folder)


def _calibrate(
    settings: ClassifyConfig, made: Classifier, validation: Sequence[Row], positive: int | None
) -> dict[str, Any]:
    """Fit temperature and threshold on the validation part; the temperature goes into the head itself."""
    if not validation:
        if settings.threshold != "none":
            console.warn(f"--threshold {settings.threshold}: no rows to validate on, so none is chosen")
        return {}
    truth_N = np.array([row.label for row in validation])
    logits_NC = made.logits([row.ids for row in validation])
    found = calibration.temperature(logits_NC, truth_N)
    head = classifier.head(made.model)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.div_(found)
    if settings.threshold != "none":
        probability_N = softmax(logits_NC / found, axis=1)[:, 1]
        made.threshold = calibration.threshold(probability_N, truth_N, settings.threshold, positive or 0)
    return {"temperature": found, "threshold": made.threshold}


def _answer(
    settings: ClassifyConfig, folder: RunFolder, made: Classifier, data: Labelled, split: Split, encoded: Sequence[Row]
) -> None:
    """Write what the model and the baselines say of each test row."""
    train, test = ([data.examples[index] for index in part] for part in (split.train, split.test))
    probability_NC = softmax(made.logits([row.ids for row in encoded]), axis=1)
    chosen_N = made.choose(probability_NC)
    scores = baselines.scores(train, test, made.labels, settings.balance != "none")
    rows = (
        {
            "where": example.where,
            "text": example.all_text,
            "truth": made.labels.index(example.label),
            "chosen": int(chosen_N[n]),
            "probabilities": probability_NC[n].tolist(),
            "baselines": {name: score_NC[n].tolist() for name, score_NC in scores.items()},
        }
        for n, example in enumerate(test)
    )
    published.write_rows(folder, verdict.PREDICTIONS, rows)


def _lines(made: Classifier, facts: dict[str, Any], positive: int | None) -> list[str]:
    """What the summary says about data and training."""
    lines = [
        f"labels: {', '.join(made.labels)}; {facts['train_rows']} rows to train on, "
        f"{facts['validation_rows']} to validate",
        f"{facts['duplicates']} duplicates left out; near-duplicates on one side ({facts['groups']} groups)",
        f"{facts['steps']} steps"
        + (f", the weights are those of step {facts['best_step']}" if facts["best_step"] else ""),
    ]
    lines += baselines.told(facts["train_rows"])
    if facts["cut"]:
        lines.append(f"{facts['cut']} texts are longer than the context; their ends were left out")
    if "temperature" in facts:
        lines.append(f"temperature {facts['temperature']:.3f}, fitted on the validation part, is in the head")
    if made.threshold is not None:
        lines.append(
            f"'{made.labels[positive or 0]}' from probability "
            f"{made.threshold if positive else 1 - made.threshold:.3f} on, chosen on the validation part; "
            "`fledge finetune predict` knows it, transformers' pipeline takes 0.5"
        )
    return lines
