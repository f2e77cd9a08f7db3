"""Numbers as people read them."""

import pytest

from fledge import console


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (950, "950"),
        (999.6, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (999_400, "999k"),
        (4.56e6, "4.56M"),
        (2e9, "2G"),
    ],
)
def test_a_count_is_short_and_rounds_into_the_next_unit(value: float, told: str) -> None:
    assert console.format_count(value) == told
