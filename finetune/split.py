"""Training, validation and test part of labelled texts: by a hash, near-duplicates on one side."""

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.config import SplitConfig
from finetune.near_duplicates import group, normal_form
from fledge.data.labelled import Example
from fledge.errors import DataError


@dataclass(frozen=True)
class Split:
    """Indices of the examples of each part, in their order."""

    train: list[int]
    validation: list[int]
    test: list[int]
    num_groups: int  # of texts that are no near-duplicates of each other


def split(examples: Sequence[Example], settings: SplitConfig, validation_share: float) -> Split:
    """Split examples by a hash of their group's first normal form: no seed and no order moves the test part.

    Raises:
        DataError: a part has too few examples, or the training or test part only one class.
    """
    groups, place_G2 = _grouped(tuple(example.all_text for example in examples))
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for index, number in enumerate(groups):
        for_test, for_validation = place_G2[number]
        if settings.is_test(for_test):
            parts["test"].append(index)
        else:
            parts["validation" if for_validation < validation_share else "train"].append(index)
    if settings.labels:
        parts["train"] = _draw(parts["train"] + parts["validation"], examples, settings)
        parts["validation"] = []
    for name in ("train", "test"):
        _check(name, [examples[index].label for index in parts[name]], settings)
    return Split(**parts, num_groups=len(place_G2))


@functools.lru_cache(maxsize=1)  # each of --folds splits the same texts
def _grouped(texts: tuple[str, ...]) -> tuple[list[int], np.ndarray]:
    """The group of each text, and the shares (G, 2) that place each group, by its first normal form."""
    groups = group(texts)
    names: dict[int, str] = {}
    for text, number in zip(texts, groups, strict=True):
        form = normal_form(text)
        names[number] = min(names.get(number, form), form)
    return groups, np.array([_shares(names[number]) for number in range(len(names))])


def _shares(name: str) -> tuple[float, float]:
    """Two independent numbers in [0, 1) from a text."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return tuple(int.from_bytes(half, "little") / 2**64 for half in (digest[:8], digest[8:]))  # type: ignore[return-value]


def _draw(indices: list[int], examples: Sequence[Example], settings: SplitConfig) -> list[int]:
    """So many labels as the budget allows, at random but at least two of each class."""
    order = np.random.default_rng(settings.draw).permutation(sorted(indices)).tolist()
    first: list[int] = []
    for label in sorted({examples[index].label for index in order}):
        first += [index for index in order if examples[index].label == label][:2]
    taken = list(dict.fromkeys(first + order))[: settings.labels]
    if len(first) > settings.labels or len(taken) < settings.labels:
        raise DataError(
            f"--label-budget {settings.labels}: there are {len(order)} rows for training, and each class needs two; "
            "choose another number of labels"
        )
    return sorted(taken)


def _check(name: str, labels: list[str], settings: SplitConfig) -> None:
    if len(set(labels)) < 2:
        have = ", ".join(f"{count} '{label}'" for label, count in Counter(labels).items()) or "no rows"
        which, other = f"the {name} part", "another share with --split.test-share"
        if settings.num_folds:
            which, other = f"{which} of fold {settings.fold}", f"another number than --folds {settings.num_folds}"
        raise DataError(f"{which} has {have}: too few rows to split; give more data, or {other}")
