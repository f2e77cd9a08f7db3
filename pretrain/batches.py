"""Training batches: a pure function of (seed, step), so that resume is exact and ranks can take slices."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fledge.errors import DataError
from tokenizer.shards import TokenStream


class Batches:
    """Windows of one context each over a token stream, in a new order every epoch.

    Epoch e cuts the stream at its own offset into windows of `context` tokens and goes through all of them in a
    pseudo-random order; so every token is a target once an epoch, each time with another left context.
    """

    def __init__(self, stream: TokenStream, context: int, sequences: int, seed: int) -> None:
        self._stream, self._context, self._sequences, self._seed = stream, context, sequences, seed
        # The same number of windows in every epoch, whatever the epoch's offset.
        self.num_windows = (stream.num_tokens - context) // context
        if self.num_windows < 1:
            raise DataError(
                f"the training split has {stream.num_tokens} tokens, too few for one window of {context}; "
                "prepare more text, or use a smaller --model.context"
            )

    def batch(self, index: int, part: int = 0, num_parts: int = 1) -> tuple[Tensor, Tensor]:
        """Batch `index` (from 0): ids and targets, int64 (B, T); targets are the ids one further on.

        Args:
            part, num_parts: a process reads its own slice of the rows only; num_parts divides them.
        """
        share = self._sequences // num_parts
        first = index * self._sequences + part * share
        positions = range(first, first + share)
        rows = np.stack([self._stream.read(self._start(p), self._context + 1) for p in positions])
        rows_BS = torch.from_numpy(rows.astype(np.int64, copy=False))
        return rows_BS[:, :-1].contiguous(), rows_BS[:, 1:].contiguous()

    def _start(self, position: int) -> int:
        epoch, place = divmod(position, self.num_windows)
        offset = _hash(self._seed, epoch, 0) % self._context
        return offset + self._context * permuted(place, self.num_windows, self._seed, epoch)


class ReadAhead:
    """The batches of one process for a GPU: the next one is read while the present one is trained on.

    It waits in pinned memory, from which the GPU copies by itself, so that the host goes on launching.
    """

    def __init__(self, batches: Batches, part: int, num_parts: int) -> None:
        self._batches, self._part, self._num_parts = batches, part, num_parts
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._read: dict[int, Future[tuple[Tensor, Tensor]]] = {}

    def batch(self, index: int, device: str) -> tuple[Tensor, Tensor]:
        """This process's slice of batch `index` on the device; reads batch `index` + 1 meanwhile."""
        found = self._read.pop(index, None) or self._reader.submit(self._pinned, index)
        self._read = {index + 1: self._reader.submit(self._pinned, index + 1)}
        ids_BT, targets_BT = (x.to(device, non_blocking=True) for x in found.result())
        return ids_BT, targets_BT

    def _pinned(self, index: int) -> tuple[Tensor, Tensor]:
        ids_BT, targets_BT = self._batches.batch(index, self._part, self._num_parts)
        if torch.cuda.is_available():
            return ids_BT.pin_memory(), targets_BT.pin_memory()
        return ids_BT, targets_BT


def permuted(place: int, size: int, seed: int, epoch: int) -> int:
    """The element at `place` of a pseudo-random permutation of range(size), in constant memory.

    A four-round Feistel network over the next power of four, walked until it lands inside (Black & Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    half_bits = max(1, (size - 1).bit_length() + 1 >> 1)
    low_mask = (1 << half_bits) - 1
    while True:
        left, right = place >> half_bits, place & low_mask
        for key in range(1, 5):
            left, right = right, left ^ (_hash(seed, epoch, key, right) & low_mask)
        place = left << half_bits | right
        if place < size:
            return place


def _hash(*parts: int) -> int:
    """64 mixed bits of whole numbers (the finaliser of splitmix64, Steele et al. 2014)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state
