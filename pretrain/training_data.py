"""The token shards that a run trains and validates on, with their tokenizer."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledge.tokens import TextTokenizer
from pretrain.config import TrainConfig
from pretrain.validation import Validation
from tokenizer import shards

MOST_ENDS = 0.01  # of the training tokens, for a training loss in bits per byte; hamlet's stories have 0.004


@dataclass
class TrainingData:
    """Both splits of a shards folder."""

    path: Path
    tokenizer: TextTokenizer
    facts: dict[str, Any]  # index.json: sources, rejects, how the split was made
    train: shards.TokenStream
    validation: shards.TokenStream

    @classmethod
    def open(cls, path: str) -> "TrainingData":
        """Open the shards of a `pretrain prepare` run, or a shards folder.

        Raises:
            DataError: there are none, they are damaged, or a split is empty.
            ModelError: the tokenizer that should lie beside them does not.
        """
        index = shards.read_index(path)
        tokenizer = TextTokenizer.from_folder(index.folder)
        shards.check_tokenizer(index.folder, tokenizer)
        train, validation = (shards.open_split(index.folder, split) for split in shards.SPLITS)
        return cls(index.folder, tokenizer, index.facts, train, validation)

    @property
    def tokens_per_byte(self) -> float | None:
        """Of the training text: turns nats/token into nats/byte; None where too many tokens are document ends.

        A training loss has their nats in it, bits per byte must not: they were 0.3 % too high where 0.1 % of the
        tokens are ends, and 28 % where 7 % are.
        """
        text = self.train
        return text.num_tokens / text.num_bytes if text.num_documents <= MOST_ENDS * text.num_tokens else None

    def validation_windows(
        self, settings: TrainConfig, evaluation: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> Validation:
        """The validation split in windows of a run's context, as many at once as in its microbatch."""
        lengths = np.array([len(piece) for piece in self.tokenizer.token_bytes()])
        batch = settings.batch.microbatch or settings.batch.sequences
        return Validation(self.validation, settings.model.context, lengths, settings.run.device, evaluation, batch)
