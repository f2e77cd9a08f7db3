"""A classifier on labelled texts: accuracy, with macro F1 and Matthews' correlation beside it."""

import numpy as np

from eval import generated
from eval.config import TaskConfig
from eval.harness import GIVE_DATA, DoesNotApply, ItemScore, Scores
from eval.metrics.f1 import f1
from eval.metrics.log_loss import SMALLEST
from eval.metrics.mcc import mcc
from eval.subject import Subject
from fledge.data import labelled
from fledge.errors import DataError, ModelError
from fledge.models import classifier


def measure(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    """Label the texts of the task's data; `log_loss` in nats."""
    if not task.data:
        raise DataError(f"classification needs labelled texts: {GIVE_DATA}")
    examples = labelled.read(task.data).examples[:limit]
    try:
        model = classifier.load(subject.path, subject.device)
    except ModelError as error:
        raise DoesNotApply(str(error)) from None
    numbers = {name: number for number, name in enumerate(model.labels)}
    for example in examples:
        if example.label not in numbers:
            known = ", ".join(model.labels)
            raise DataError(f"{example.where}: label '{example.label}', but the classifier knows {known}")
    truth = [numbers[example.label] for example in examples]
    probabilities = np.array(list(model.probabilities((e.text, e.text_pair) for e in examples)))
    chosen = model.choose(probabilities).tolist()
    losses = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], SMALLEST))
    items = [
        ItemScore(
            example.where, "texts", example.all_text, {"accuracy": float(guess == label), "log_loss": float(loss)}
        )
        for example, guess, label, loss in zip(examples, chosen, truth, losses, strict=True)
    ]
    pooled = {name: generated.pooled_estimate(metric, chosen, truth) for name, metric in (("f1", f1), ("mcc", mcc))}
    most = max(truth.count(label) for label in set(truth)) / len(truth)
    return Scores(items, {"accuracy": most, "mcc": 0.0}, pooled, settings={"num_cut": model.encoder.num_cut})
