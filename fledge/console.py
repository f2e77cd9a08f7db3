"""What people see: progress and notes on stderr (plain when it is no terminal), results on stdout."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar, TextIO

from fledge import processes

PLAIN_INTERVAL_S = 10.0  # between progress lines when stderr is no terminal
# Controls but line ends and tabs, and what turns the reading direction (Unicode, TR 9: LRE to RLO, LRI to PDI).
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def is_quiet() -> bool:
    """Whether this process keeps silent: in a run of several processes only rank 0 speaks."""
    return not processes.is_first()


def visible(text: str, is_strict: bool = False) -> str:
    """Text that steers no terminal: controls become like \\x1b, if strict also all else that does not print."""
    return "".join(
        c.encode("unicode_escape").decode() if not c.isprintable() and (is_strict or _STEERING.match(c)) else c
        for c in text
    )


def note(text: str) -> None:
    """Tell the user something on stderr."""
    if not is_quiet():
        _show(f"{visible(text)}\n", sys.stderr)


def warn(text: str) -> None:
    """Tell the user on stderr that something is not as it should be."""
    note(f"warning: {text}")


def result(text: str) -> None:
    """Print a result on stdout."""
    if not is_quiet():
        write(f"{text}\n")


def write(text: str) -> None:
    """Write a piece of text to stdout at once; where that is no terminal, byte for byte."""
    _show(visible(text) if sys.stdout.isatty() else text, sys.stdout)


def _show(text: str, stream: TextIO) -> None:
    if Progress._shared and stream.isatty():
        from rich.text import Text

        # Above the bars; what is just printed rich would break at the screen's edge, paths and JSON too.
        Progress._shared[0].console.print(Text(text), end="", soft_wrap=True)
    else:
        print(text, end="", file=stream, flush=True)


def format_count(value: float) -> str:
    """A short human count: 950, 12.3k, 4.56M, 1.20G."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(f"{abs(value):.3g}") >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_seconds(seconds: float) -> str:
    """A short duration: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A progress display; `advance` as often as you like, drawing is rate-limited."""

    _shared: ClassVar[list[Any]] = []  # the display on the terminal, while there is one
    _num_open: ClassVar[int] = 0

    def __init__(self, description: str, total: float | None, unit: str, done: float = 0) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = self._first = done
        self._started = self._printed = time.monotonic()
        self._text = ""
        self._bar: Any = None
        self._task: Any = None

    def _open(self) -> None:
        if is_quiet() or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        screen = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=min(30, max(5, screen.width - 70))),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            # Has what the others leave.
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        )
        # One display for all bars: validation shows below the training that it interrupts.
        if not Progress._shared:
            is_one_screen = sys.stdout.isatty()  # else rich would show there what is meant for a file or pipe
            bars = RichProgress(*columns, console=screen, transient=True, redirect_stdout=is_one_screen, expand=True)
            bars.start()
            Progress._shared.append(bars)
        self._bar = Progress._shared[0]
        Progress._num_open += 1
        self._task = self._bar.add_task(self._description, total=self._total, completed=self._done, text="")

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """Count `amount` more done; `text` is shown beside the bar until the next one."""
        self._done += amount
        self._text = self._text if text is None else text
        if self._bar:
            count = "" if self._total else f"{format_count(self._done)} {self._unit}  "
            self._bar.update(self._task, completed=self._done, text=count + self._text)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            note(self._plain_line())

    def reach(self, done: float, text: str | None = None) -> None:
        """As `advance`, up to `done` in all."""
        self.advance(done - self._done, text)

    def _plain_line(self) -> str:
        elapsed = time.monotonic() - self._started
        line = f"{self._description}: {format_count(self._done)}"
        if self._total:
            line += f"/{format_count(self._total)} {self._unit}".rstrip()
            rate = (self._done - self._first) / elapsed if elapsed > 0 else 0
            if rate > 0:
                line += f", {format_seconds((self._total - self._done) / rate)} left"
        else:
            line += f" {self._unit}"
        return f"{line}  {self._text}".rstrip()

    def _close(self) -> None:
        if self._bar:
            self._bar.remove_task(self._task)
            self._bar = None
            Progress._num_open -= 1
            if not Progress._num_open:
                Progress._shared.pop().stop()


@contextlib.contextmanager
def progress(description: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Progress]:
    """Show progress of something that may take longer than two seconds.

    Args:
        total: how much there is to do in `unit`s; None if not known.
        done: how much of it was done before (a resumed run).
    """
    display = Progress(description, total, unit, done)
    display._open()
    try:
        yield display
    finally:
        display._close()


def table(rows: list[list[str]], header: list[str]) -> str:
    """A plain aligned table that is valid Markdown whatever the cells hold; numbers to the right."""
    # Backslashes before a bar are doubled, or they would take away the one that is put there.
    cells = [[re.sub(r"(\\*)\|", r"\1\1\\|", " ".join(cell.split())) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [
        all(row[i][:1].isdigit() or row[i][:1] in "-+." or not row[i] for row in cells[1:]) for i in range(len(header))
    ]

    def line(row: list[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])
