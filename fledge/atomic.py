"""Files and folders that are there whole or not at all: written beside under a dot name, synced, renamed."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from fledge.errors import FledgeError, RunError

PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """The dot name under which an unfinished file or folder is written."""
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def write_file(path: Path, content: str | bytes) -> None:
    """Write or replace a file so that a reader sees the old content or the new, never a part; makes its folder.

    Raises:
        RunError: the disk is full or the folder can't be written.
    """
    partial = partial_path(path)
    data = content.encode() if isinstance(content, str) else content
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `path` (an existing folder there is replaced).

    On an error the unfinished folder is removed and `path` is as it was before.
    Raises:
        RunError: the disk is full or the folder can't be written.
    """
    partial = partial_path(path)
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    sync_file(file)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync_folder(partial)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
        _sync_folder(path.parent)


def finish_replacements(folder: Path) -> None:
    """Clear away what a killed process left half-done in a folder (names that begin with a dot).

    A replacement cut between its two renames is put back: the old folder is the newest whole one.
    """
    for old in folder.glob(".*.old"):
        target = folder / old.name[1 : -len(".old")]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaints about writing into a RunError that says what to do."""
    try:
        yield
    except Exception as error:
        number = _system_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(f"{path}: no space left to write it; free some disk and continue with --resume") from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise RunError(f"{path}: not writable ({os.strerror(number)}); choose another --out") from error
        raise


def _system_number(error: Exception) -> int | None:
    """The system's number of an error, also where a library has put it into words of its own."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, FledgeError):
        return None
    if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):  # torch does not tell which
        return errno.ENOSPC
    found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors, tokenizers
    return int(found[1]) if found else None


def sync_file(path: Path) -> None:
    """Force a file's content to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # folders can't be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
