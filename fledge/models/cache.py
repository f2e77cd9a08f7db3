"""The keys and values of tokens already read, so that the next token costs one step and not a whole pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Buffers of fixed size for all layers of one batch, filled from the left.

    Shapes: B rows, K key-value heads, S tokens there is room for, E head width.
    """

    def __init__(
        self, config: Any, num_rows: int, num_tokens: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, num_rows, config.kv_heads, num_tokens, config.head_width)
        self.length = 0
        self.room, self.device = num_tokens, torch.device(device)
        self.rows = num_rows
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        if self._keys.device.type == "cpu":  # a head's keys lie transposed, as `attention` reads them there
            self._keys = self._keys.view(*shape[:3], config.head_width, num_tokens).mT
        self._is_padding_BS: Tensor | None = None

    def extend(self, num_tokens: int, is_padding_BT: Tensor | None) -> Tensor | None:
        """Make room for the keys of `num_tokens` more; call once before the layers append theirs.

        Returns:
            is_padding_BS over all tokens so far, or None if none of them is padding.
        """
        self.length += num_tokens
        if self.length > self._keys.shape[3]:
            raise ValueError(f"cache has room for {self._keys.shape[3]} tokens, not {self.length}")
        if self._is_padding_BS is None and is_padding_BT is not None:
            room = self._keys.shape[1], self._keys.shape[3]
            self._is_padding_BS = torch.zeros(room, dtype=torch.bool, device=self._keys.device)
        if self._is_padding_BS is None:
            return None
        if is_padding_BT is not None:
            self._is_padding_BS[: self.rows, self.length - num_tokens : self.length] = is_padding_BT
        return self._is_padding_BS[: self.rows, : self.length]

    def append(self, layer: int, key_BKTE: Tensor, value_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; gives all of that layer's."""
        rows, new = slice(self.rows), slice(self.length - key_BKTE.shape[2], self.length)
        self._keys[layer, rows, :, new] = key_BKTE
        self._values[layer, rows, :, new] = value_BKTE
        if new.start == 0:
            return key_BKTE, value_BKTE
        return self._keys[layer, rows, :, : self.length], self._values[layer, rows, :, : self.length]

    def buffers(self, layer: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the first rows, with the room that is not filled yet: (B, K, S, E) each."""
        return self._keys[layer, :num_rows], self._values[layer, :num_rows]

    def padding(self, num_rows: int) -> Tensor | None:
        """is_padding_BS of the first rows over all the room; None if there is none. It changes with the rows."""
        return None if self._is_padding_BS is None else self._is_padding_BS[:num_rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order; a row may move to the front, but none to the back.

        Only rows that move are copied; the buffers stay where they are.
        """
        for place, row in enumerate(rows):
            if place != row:
                for buffer in (self._keys, self._values):
                    buffer[:, place, :, : self.length] = buffer[:, row, :, : self.length]
                if self._is_padding_BS is not None:
                    self._is_padding_BS[place] = self._is_padding_BS[row]
        self.rows = len(rows)
