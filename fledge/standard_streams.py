"""Standard input and output as a command needs them: there, in UTF-8 where they are no terminal, and no run's end."""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any


def put_right() -> None:
    """Mend sys.stdin, sys.stdout and sys.stderr as this process was given them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115, it stays open
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # Files are UTF-8, whatever Windows' code page is; a terminal may have no letters for a model's text.
            encoding = None if stream.isatty() else "utf-8"
            with contextlib.suppress(io.UnsupportedOperation):  # it was read from before
                stream.reconfigure(encoding=encoding, errors="backslashreplace" if name == "stderr" else "replace")
    sys.stderr = _Forgiving(sys.stderr)


class _Forgiving:
    """A stream that drops what it can't write: no run ends because its terminal is gone or its log's disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As a text stream's."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a stream's."""
        with contextlib.suppress(OSError):
            self._stream.flush()
