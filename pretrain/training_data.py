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
    def tokens_per_byte(self) -> float:
        """Of the training text: turns nats/token into nats/byte."""
        return self.train.num_tokens / max(1, self.train.num_bytes)

    def validation_windows(
        self, settings: TrainConfig, evaluation: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> Validation:
        """The validation split in windows of a run's context, as many at once as in its microbatch."""
        lengths = np.array([len(piece) for piece in self.tokenizer.token_bytes()])
        batch = settings.batch.microbatch or settings.batch.sequences
        return Validation(self.validation, settings.model.context, lengths, settings.run.device, evaluation, batch)
