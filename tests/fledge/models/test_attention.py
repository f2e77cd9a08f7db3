from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from fledge.models.attention import attend, visible_keys
from fledge.models.cache import KVCache

ROWS, HEADS, WIDTH, KEYS = 3, 4, 8, 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("room", [KEYS, 6 * KEYS])
@pytest.mark.parametrize("has_padding", [False, True])
def test_one_token_reads_the_cache_as_torchs_attention_does(
    dtype: torch.dtype, kv_heads: int, room: int, has_padding: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = SimpleNamespace(layers=2, kv_heads=kv_heads, head_width=WIDTH)
    cache = KVCache(shape, ROWS + 1, room, dtype, "cpu")
    cache.keep([3, 1, 2])  # the buffers have more rows than are read
    key, value = torch.randn(2, ROWS, kv_heads, KEYS, WIDTH, generator=generator).to(dtype)
    query = torch.randn(ROWS, HEADS, 1, WIDTH, generator=generator).to(dtype)
    is_padding = torch.arange(KEYS - 1) < torch.tensor([[0], [4], [7]]) if has_padding else None
    for new in (slice(0, KEYS - 1), slice(KEYS - 1, KEYS)):
        is_padding = cache.extend(new.stop - new.start, is_padding if new.start == 0 else None)
        keys, values = cache.append(1, key[:, :, new], value[:, :, new])
    with torch.no_grad():
        found = attend(query, keys, values, visible_keys(1, KEYS - 1, is_padding, key.device))
    mask = None if is_padding is None else ~is_padding[:, None, None]
    expected = functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=mask, enable_gqa=True
    )
    tolerance = 1e-5 if dtype == torch.float32 else 0.02  # bfloat16 keeps 8 bits
    expected = expected.transpose(1, 2).flatten(2)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("past", [0, 3])
def test_many_tokens_read_as_torchs_attention_does(dtype: torch.dtype, kv_heads: int, past: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, HEADS, KEYS - past, WIDTH, generator=generator).to(dtype)
    key, value = torch.randn(2, ROWS, kv_heads, KEYS, WIDTH, generator=generator).to(dtype)
    visible = visible_keys(KEYS - past, past, None, key.device)
    is_seen = torch.ones(KEYS - past, KEYS, dtype=torch.bool).tril(past)
    expected = functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=is_seen, enable_gqa=True
    )
    tolerance = 1e-5 if dtype == torch.float32 else 0.02  # bfloat16 keeps 8 bits
    found = attend(query, key, value, visible).double()
    torch.testing.assert_close(found, expected.transpose(1, 2).flatten(2), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_weights_are_dropped_in_either_number_format(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 64, 8).to(dtype)
    # All values are 1, so a row's result is the sum of its weights: 1 without dropout.
    found = attend(query, key, torch.ones(1, 1, 64, 8, dtype=dtype), None, dropout=0.5)
    assert found.float().std() > 0.1
