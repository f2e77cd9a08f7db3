"""A user's own Python file: a check, a metric, a reward; whatever it raises becomes an error that says where."""

import functools
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fledge.errors import ConfigError, FledgeError


def load(path: str | Path) -> Any:
    """What the file defines, as attributes; run again only where it has changed.

    Raises:
        ConfigError: there is no such file, or it raises.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such file")
    return _loaded(file.resolve(), file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _loaded(file: Path, changed_ns: int) -> Any:
    try:
        return SimpleNamespace(**runpy.run_path(str(file)))
    except Exception as error:
        raise ConfigError(f"{file}: can't be imported: {said(error)}") from error


def said(error: Exception) -> str:
    """An error in one line; of those that are no message of ours also the kind."""
    return str(error) if isinstance(error, FledgeError) else f"{type(error).__name__}: {error}"
