"""The text that a model was trained on and validated on, as its run's token shards have it."""

from collections.abc import Sequence

import numpy as np

from eval.baselines import ngram_bits_per_byte
from eval.subject import Subject
from fledge.errors import DataError
from tokenizer import shards


def ngram_baseline(subject: Subject, pieces: Sequence[np.ndarray]) -> tuple[float | None, str]:
    """Bits per byte of texts under a 5-gram model of the run's own training text, and what it was counted in.

    None where the model has no shards.
    """
    if subject.ngrams is None:
        return None, ""
    return ngram_bits_per_byte(subject.ngrams, pieces, subject.tokenizer.token_bytes()), subject.ngrams.name


def validation_stream(subject: Subject) -> shards.TokenStream | None:
    """The validation split of the model's own shards; None where it has none."""
    folder = subject.shards()
    try:
        return shards.open_split(folder, "validation") if folder else None
    except DataError:  # the split is empty
        return None
