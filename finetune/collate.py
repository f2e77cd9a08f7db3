"""Labelled texts as batches of tensors, padded to the right, and the loss on them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from finetune.split import Split
from fledge.data.labelled import Example
from fledge.models.classifier import Classifier, pad
from fledge.trainer_bridge import Batch


@dataclass(frozen=True, slots=True)
class Row:
    """One example as ids."""

    ids: list[int]
    label: int


def encode(classifier: Classifier, examples: Sequence[Example], split: Split) -> list[list[Row]]:
    """The examples of the training, validation and test part, as the classifier reads them."""
    parts = []
    for part in (split.train, split.validation, split.test):
        own = [examples[index] for index in part]
        ids = classifier.encoder.encode([(example.text, example.text_pair) for example in own])
        parts.append([Row(i, classifier.labels.index(e.label)) for i, e in zip(ids, own, strict=True)])
    return parts


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """A batch: `input_ids` (B, T), `attention_mask` with 1 for what is no padding, `labels` (B,)."""
    ids_BT, is_real_BT = pad([row.ids for row in rows], pad_id)
    return {
        "input_ids": ids_BT,
        "attention_mask": is_real_BT,
        "labels": torch.tensor([row.label for row in rows]),
        "num_tokens": int(is_real_BT.sum()),
    }


def balanced(
    rows: list[Row], num_labels: int, how: Literal["none", "weights", "repeat"]
) -> tuple[list[Row], list[float]]:
    """The rows to train on, and the weight of each label in the loss (on average over the rows 1).

    Args:
        how: weights makes rare labels count more; repeat takes their rows several times.
    """
    counts = Counter(row.label for row in rows)
    most = max(counts.values())
    if how == "weights":
        return rows, [len(rows) / (len(counts) * max(counts[n], 1)) for n in range(num_labels)]
    if how == "repeat":
        rows = [row for row in rows for _ in range(round(most / counts[row.label]))]
    return rows, [1.0] * num_labels


def summed_loss(label_weights: list[float]) -> Callable[[nn.Module, Batch], Tensor]:
    """A function that gives the cross-entropy of a batch in nats, weighted, summed over its rows."""
    weight_C = torch.tensor(label_weights)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits_BC = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return nn.functional.cross_entropy(
            logits_BC.float(), batch["labels"], weight_C.to(logits_BC.device), reduction="sum"
        )

    return loss
