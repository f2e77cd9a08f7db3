"""The text that a model was trained on and validated on, as its run's token shards have it."""

from collections.abc import Sequence

import numpy as np

from eval.baselines import ngram_bits_per_byte
from eval.subject import Subject
from fledge.errors import DataError
from tokenizer import shards

NGRAM_ORDER = 5
NGRAM_TOKENS = 2_000_000  # of the training shards: counted within seconds, and later ones add little


def ngram_baseline(subject: Subject, pieces: Sequence[np.ndarray]) -> tuple[float | None, str]:
    """Bits per byte of texts under a 5-gram model of the run's own training text, and what it was counted in.

    None where the model has no shards.
    """
    folder = subject.shards()
    if folder is None:
        return None, ""
    stream = shards.open_split(folder, "train")
    count = min(NGRAM_TOKENS, stream.num_tokens)
    train_ids = stream.read(0, count)
    value = ngram_bits_per_byte(train_ids, pieces, subject.tokenizer.token_bytes(), NGRAM_ORDER)
    return value, f"{NGRAM_ORDER}-gram, Kneser-Ney, {count:,} training tokens"


def validation_stream(subject: Subject) -> shards.TokenStream | None:
    """The validation split of the model's own shards; None where it has none."""
    folder = subject.shards()
    try:
        return shards.open_split(folder, "validation") if folder else None
    except DataError:  # the split is empty
        return None
