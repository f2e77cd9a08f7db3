"""Which examples make which batch of a run."""

from collections.abc import Iterator, Sequence

import numpy as np

# Steps whose examples are sorted by length before they are cut into batches: enough for little padding, few enough
# that a pass stays well mixed.
BUCKET_STEPS = 50


class BatchOrder:
    """The batches of a whole run, a pure function of the seed: pass after pass over the examples, each shuffled anew.

    A step holds the same examples however it is cut into microbatches; steps go on over the end of a pass.

    Args:
        per_step: examples in an optimizer step.
        microbatch: examples in a batch; divides `per_step`.
        lengths: of the examples; with them, a step holds examples of about one length.
    """

    def __init__(
        self,
        num_examples: int,
        per_step: int,
        microbatch: int,
        num_steps: int,
        seed: int,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._num_examples, self._per_step, self._microbatch = num_examples, per_step, microbatch
        self._num_steps, self._seed = num_steps, seed
        self._lengths = None if lengths is None else np.asarray(lengths)

    def __len__(self) -> int:
        return self._num_steps * (self._per_step // self._microbatch)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps():
            for start in range(0, self._per_step, self._microbatch):
                yield step[start : start + self._microbatch].tolist()

    def _steps(self) -> Iterator[np.ndarray]:
        # No more than a pass, so that within one no example meets itself in a batch.
        window = max(1, min(BUCKET_STEPS, self._num_examples // self._per_step)) if self._lengths is not None else 1
        waiting, epoch, done = np.empty(0, dtype=np.int64), 0, 0
        while done < self._num_steps:
            while len(waiting) < window * self._per_step:
                random = np.random.default_rng([self._seed, 0, epoch])
                waiting, epoch = np.concatenate([waiting, random.permutation(self._num_examples)]), epoch + 1
            taken, waiting = np.split(waiting, [window * self._per_step])
            order = np.arange(window)
            if self._lengths is not None:
                taken = taken[np.argsort(self._lengths[taken], kind="stable")]
                order = np.random.default_rng([self._seed, 1, done]).permutation(window)
            steps = taken.reshape(window, self._per_step)[order][: self._num_steps - done]
            yield from steps
            done += len(steps)
