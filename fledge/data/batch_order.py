"""Which examples make which batch of a run."""

from collections.abc import Iterator, Sequence

import numpy as np

# Batches in which examples are sorted by length before they are cut into batches: enough for little padding, few
# enough that an epoch stays well mixed.
BUCKET_BATCHES = 50


class BatchOrder:
    """The batches of a whole run; batch i is a pure function of the seed and i.

    Args:
        lengths: of the examples; with them, batches hold examples of about one length.
    """

    def __init__(
        self, num_examples: int, batch_size: int, num_batches: int, seed: int, lengths: Sequence[int] | None
    ) -> None:
        self._num_examples, self._batch_size, self._seed = num_examples, batch_size, seed
        self._num_batches, self._lengths = num_batches, None if lengths is None else np.asarray(lengths)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        left, epoch = self._num_batches, 0
        while left > 0:
            batches = self.epoch(epoch)[:left]
            yield from batches
            left, epoch = left - len(batches), epoch + 1

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one pass; each example stands in one of them."""
        random = np.random.default_rng([self._seed, number])
        order = random.permutation(self._num_examples)
        size = self._batch_size
        if self._lengths is not None:
            window = size * BUCKET_BATCHES
            parts = [order[start : start + window] for start in range(0, len(order), window)]
            order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
        return batches if self._lengths is None else [batches[i] for i in random.permutation(len(batches))]
