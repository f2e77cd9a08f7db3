"""Checkpoints are proved by their manifest."""

from pathlib import Path

import pytest

from fledge import checkpoints


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        with checkpoints.write(folder, step) as partial:
            (partial / "state.pt").write_bytes(bytes(100) + step.to_bytes(4, "big"))


def steps(folder: Path) -> list[int]:
    return [checkpoints.step_of(p) for p in checkpoints.listed(folder)]


def test_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    make(tmp_path, 100, 200, 1000)
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "step-001000"
    make(tmp_path, 999_999, 1_000_000)
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "step-1000000"


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_aloud(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, 100, 200)
    file = tmp_path / "step-000200" / "state.pt"
    content = file.read_bytes()
    if harm == "truncate":
        file.write_bytes(content[:-1])
    elif harm == "flip":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif harm == "remove":
        file.unlink()
    elif harm == "manifest":
        (file.parent / checkpoints.MANIFEST).write_text("[1]")
    else:
        (file.parent / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "step-000100"
    assert "step-000200: damaged" in capsys.readouterr().err


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 100)
    (tmp_path / "step-abc").mkdir()
    assert steps(tmp_path) == [100]


def test_no_bit_of_a_checkpoint_can_turn_over_unseen(tmp_path: Path) -> None:
    make(tmp_path, 100)
    checkpoint = tmp_path / "step-000100"
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        for place in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            file.write_bytes(flipped)
            assert checkpoints.damage(checkpoint), f"{file.name}, bit {place}"
        file.write_bytes(content)
    assert checkpoints.damage(checkpoint) is None


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoints.newest_whole(tmp_path) is None


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3, 4, 5)
    checkpoints.prune(tmp_path, keep=2, best_step=2)
    assert steps(tmp_path) == [2, 4, 5]


def test_drop_after_removes_what_is_newer(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3)
    checkpoints.drop_after(tmp_path, 1)
    assert steps(tmp_path) == [1]
