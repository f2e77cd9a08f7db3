"""Files and folders appear whole or not at all."""

import errno
from pathlib import Path

import pytest

from fledge import atomic
from fledge.errors import RunError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic.new_folder(target) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic.new_folder(target) as partial:
        (partial / "a" / "b").write_text("new")
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("old", "new"):
        with atomic.new_folder(target) as partial:
            (partial / content).write_text(content)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_replacement_cut_between_its_renames_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".file.partial").write_text("x")
    atomic.finish_replacements(tmp_path)
    assert names(tmp_path) == ["model"]


def test_a_finished_replacement_loses_its_old_folder(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / "model").mkdir()
    atomic.finish_replacements(tmp_path)
    assert names(tmp_path) == ["model"]


def test_write_file_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for content in ("one", b"two"):
        atomic.write_file(tmp_path / "f", content)
    assert (tmp_path / "f").read_bytes() == b"two"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left to write it; free some disk and continue with --resume"),
        (errno.EFBIG, "no space left to write it; free some disk and continue with --resume"),
        (errno.EROFS, "not writable"),
        (errno.ENOTDIR, "not writable .*; choose another --out"),
    ],
)
def test_disk_errors_say_what_to_do(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(RunError, match=message), atomic.disk_errors(tmp_path):
        raise OSError(number, "from the system")


def test_a_full_disk_is_seen_through_the_words_of_libraries(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors import SafetensorError

    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with pytest.raises(RunError, match="no space left"), atomic.disk_errors(tmp_path):
        torch.save({"weights": torch.ones(1000)}, full)
    with pytest.raises(RunError, match="no space left"), atomic.disk_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="something else"), atomic.disk_errors(tmp_path):
        raise RuntimeError("something else")
