"""Errors that a user can cause; the command line prints them as one line without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class FledgeError(Exception):
    """Something that the user can put right: the message says what, where and what to do (exit code 1)."""

    exit_code = 1


class ConfigError(FledgeError):
    """A config file or option is wrong."""


class DataError(FledgeError):
    """Input data is missing, unreadable or unfit."""


class ModelError(FledgeError):
    """A model folder is missing, damaged or of a kind that is not implemented."""


class RunError(FledgeError):
    """A run folder can't be created, resumed or read."""


class UsageError(FledgeError):
    """The command line itself makes no sense (exit code 2)."""

    exit_code = 2


class RunFailed(FledgeError):
    """A run started properly and then failed, or missed a pass band (exit code 3)."""

    exit_code = 3


class Interrupted(FledgeError):
    """The user or the system asked the run to stop, and a checkpoint was written (exit code 130)."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What a library's error says first, at most 200 characters; its class where it says nothing."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, or torch's of a CPU or GPU."""
    text = str(error).lower()
    is_torchs = isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate" in text)
    return is_torchs or isinstance(error, MemoryError)


@contextmanager
def of_row(where: str) -> Iterator[None]:
    """Say of a DataError which row of the data it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}; mend it or leave it out") from None
