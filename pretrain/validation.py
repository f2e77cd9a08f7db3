"""Loss on held-out text, in nats/token and in bits per byte."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fledge import processes
from fledge.console import progress
from fledge.models.loss import IGNORED
from tokenizer.shards import TokenStream


@dataclass(frozen=True)
class HeldOut:
    """Losses on held-out text."""

    loss: float  # nats/token, over all targets, document ends included
    bits_per_byte: float  # over the text's bytes; document ends cost and count nothing
    tokens: int
    text_bytes: int


class Validation:
    """A validation split cut into windows of one context, each token a target once; processes share the windows.

    Args:
        token_bytes: bytes of each token id; special tokens have 0.
        evaluation: gives the context in which the forward pass runs.
    """

    def __init__(
        self,
        stream: TokenStream,
        context: int,
        token_bytes: np.ndarray,
        device: str,
        evaluation: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        batch: int = 32,
    ) -> None:
        self._stream, self._context, self._device, self._evaluation = stream, context, device, evaluation
        self._bytes = torch.from_numpy(np.asarray(token_bytes, dtype=np.int64))
        self._batch = batch
        self.num_windows = max(1, math.ceil((stream.num_tokens - 1) / context))

    def measure(self, model: nn.Module, sequences: int | None = None) -> HeldOut:
        """The losses of a model over all windows, or over `sequences` windows spread evenly.

        Args:
            model: called with ids_BT, targets_BT and "none" it gives losses (B, T); left in the mode it was in.
        """
        count = min(sequences or self.num_windows, self.num_windows)
        windows = [i * self.num_windows // count for i in range(count)]
        was_training = model.training
        model.eval()
        nats = text_nats = 0.0
        tokens = text_bytes = 0
        with torch.no_grad(), processes.lockstep(), progress("validation", count * self._context, "tokens") as bar:
            for start in range(0, count, self._batch * processes.size()):
                mine = start + self._batch * processes.rank()
                ids_BT, targets_BT = self._windows(windows[mine : mine + self._batch])
                with self._evaluation():
                    losses_BT = model(ids_BT, targets_BT, "none")
                # Summed on the CPU: MPS has no float64.
                losses_BT, targets_BT = losses_BT.cpu().double(), targets_BT.cpu()
                is_target_BT = targets_BT != IGNORED
                bytes_BT = self._bytes[targets_BT.clamp(min=0)] * is_target_BT
                nats += float(losses_BT.sum())
                text_nats += float(losses_BT[bytes_BT > 0].sum())
                tokens += int(is_target_BT.sum())
                text_bytes += int(bytes_BT.sum())
                bar.advance(ids_BT.numel() * processes.size())
        model.train(was_training)
        if processes.size() > 1:
            nats, text_nats, *counts = processes.total(nats, text_nats, tokens, text_bytes)
            tokens, text_bytes = map(int, counts)
        return HeldOut(nats / tokens, text_nats / (math.log(2) * max(1, text_bytes)), tokens, text_bytes)

    def _windows(self, windows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and targets (B, T) of some windows; a short last window is filled up with ignored targets.

        Without windows (another process has the last ones) a row of nothing: all processes make equally many passes.
        """
        ids_BT = np.zeros((max(1, len(windows)), self._context), dtype=np.int64)
        targets_BT = np.full_like(ids_BT, IGNORED)
        for row, window in enumerate(windows):
            start = window * self._context
            piece = self._stream.read(start, min(self._context + 1, self._stream.num_tokens - start))
            ids_BT[row, : len(piece) - 1] = piece[:-1]
            targets_BT[row, : len(piece) - 1] = piece[1:]
        return torch.from_numpy(ids_BT).to(self._device), torch.from_numpy(targets_BT).to(self._device)
