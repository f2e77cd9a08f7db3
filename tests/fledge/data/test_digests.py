"""The set of digests against Python's own."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fledge.data.digests import DigestSet
from fledge.data.text import digest


@given(st.lists(st.integers(0, 40)))
def test_it_behaves_like_a_set(numbers: list[int]) -> None:
    ours, theirs = DigestSet(capacity=2), set()
    for number in numbers:
        assert ours.add(digest(bytes([number]))) == (number not in theirs)
        theirs.add(number)
    assert len(ours) == len(theirs)


def test_it_survives_saving(tmp_path: Path) -> None:
    seen = DigestSet(capacity=4)
    for number in range(100):
        seen.add(digest(str(number).encode()))
    seen.save(tmp_path / "seen.bin")
    again = DigestSet.load(tmp_path / "seen.bin")
    assert len(again) == 100
    assert not any(again.add(digest(str(number).encode())) for number in range(100))
    assert again.add(b"something new 16")


def test_a_digest_of_zeros_is_one_like_others() -> None:
    seen = DigestSet()
    assert [seen.add(bytes(16)), seen.add(bytes(16)), len(seen)] == [True, False, 1]
