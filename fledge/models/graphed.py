"""A decoding step of our models recorded as a CUDA graph: the host launches it as a whole, not kernel by kernel.

All shapes are fixed: the new token's place is a number on the device, and all of the cache's buffers are read.
Shapes: B rows recorded, D width, V vocabulary, S tokens there is room for.
"""

from typing import Any

import torch
from torch import Tensor

from fledge.console import warn
from fledge.errors import first_line
from fledge.models.cache import KVCache

WARM_UPS = 2  # before recording; the first calls of cuBLAS and of kernels allocate
WORTH_STEPS = 16  # recording takes the time of some steps

_failed = False  # recording did not work here; not tried again


class FixedStep:
    """One token more in each of the cache's rows, by operations of the same shapes every time."""

    def __init__(self, model: Any, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self.rows, device = cache.rows, cache.device
        self._ids_B1 = torch.zeros(self.rows, 1, dtype=torch.long, device=device)
        self._place_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._keys_S = torch.arange(cache.room, device=device)
        self._is_padding_BS = cache.padding(self.rows)

    def take(self, ids_B: Tensor) -> None:
        """Set the tokens of the next step; there may be fewer than were recorded, the rest is then anything."""
        self._ids_B1[: len(ids_B), 0] = ids_B
        self._place_1.fill_(self._cache.length)

    def run(self) -> Tensor:
        """Read the tokens; float32 logits (B, V). Changes nothing that running it again would find changed."""
        is_visible_BS = (self._keys_S <= self._place_1)[None]
        positions = self._place_1
        if self._is_padding_BS is not None:
            is_visible_BS = is_visible_BS & ~self._is_padding_BS
            positions = self._place_1 - self._is_padding_BS.sum(1, keepdim=True)
        visible = is_visible_BS[:, None, None]
        hidden_B1D = self._model.run_blocks(self._ids_B1, positions, visible, self)
        logits: Tensor = self._model.logits(hidden_B1D[:, -1])
        return logits

    def append(self, layer: int, key_BK1E: Tensor, value_BK1E: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.append`, at the place on the device; gives the buffers as a whole."""
        buffers = self._cache.buffers(layer, self.rows)
        for buffer, new in zip(buffers, (key_BK1E, value_BK1E), strict=True):
            buffer.index_copy_(2, self._place_1, new.to(buffer.dtype))
        return buffers


class GraphedStep:
    """A `FixedStep` on CUDA, recorded once and replayed for every token."""

    def __init__(self, model: Any, cache: KVCache, ids_B: Tensor) -> None:
        self._step, self._cache, self.rows = FixedStep(model, cache), cache, cache.rows
        self._step.take(ids_B)
        self._graph = torch.cuda.CUDAGraph()
        # Weights that autocast keeps in bfloat16 would be gone when the graph is replayed.
        is_cast, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled=is_cast, cache_enabled=False):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self._step.run()
                torch.cuda.synchronize()
                # Not by `torch.cuda.graph`, which collects garbage and gives memory back each time. Only this thread's
                # calls are recorded: another one may read batches ahead.
                self._graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._logits_BV = self._step.run()
                finally:
                    self._graph.capture_end()
            torch.cuda.current_stream().wait_stream(side)

    def __call__(self, ids_B: Tensor) -> Tensor:
        """Read one token in each row; the logits hold until the next call."""
        self._step.take(ids_B)
        self._graph.replay()
        self._cache.extend(1, None)
        return self._logits_BV[: len(ids_B)]


def recorded(model: Any, cache: KVCache, ids_B: Tensor, before: GraphedStep | None) -> GraphedStep | None:
    """What makes the next step: the recording there is, a new one for less than half its rows, or None: eager.

    Args:
        ids_B: of the next step, on the device.
    """
    global _failed
    if before is not None and 2 * cache.rows > before.rows:
        return before
    if _failed or cache.device.type != "cuda" or cache.room - cache.length < WORTH_STEPS:
        return before
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return None  # DeepSpeed's ZeRO 3 fetches weights within the step
    try:
        return GraphedStep(model, cache, ids_B)
    except RuntimeError as error:
        _failed = True
        warn(f"decoding without a CUDA graph, slower: {first_line(error)}")
        return None
