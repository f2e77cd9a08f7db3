"""Commands with the standard streams that they are given: closed, full, gone, or in another encoding."""

import contextlib
import os
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TOLD = "\u201ca"


def program(body: str) -> list[str]:
    """`fledge doctor`, but that its command does this."""
    code = f"""
import sys, time, click
from pathlib import Path
from fledge import __main__, console, doctor
def say():
{textwrap.indent(body, "    ")}
doctor.doctor = click.Command('doctor', callback=say)
__main__.main()
"""
    return [sys.executable, "-c", code, "doctor"]


@pytest.fixture
def terminal() -> tuple[int, int]:
    """Both ends of a terminal of 80 columns: what people see, and what a command is given. A test closes them."""
    if os.name == "nt":
        pytest.skip("Windows has no such terminals")
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return ours, theirs


def ran(body: str, redirect: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$@" {redirect}', "bash", *program(body)]
    environment = os.environ | settings
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment)


SAY_BOTH = "console.note('a note'); console.result(chr(0x201C) + 'a')"


@pytest.mark.parametrize(("redirect", "out"), [("2>&-", f"{TOLD}\n"), (">&-", ""), ("<&-", f"{TOLD}\n")])
def test_a_closed_stream_is_as_one_that_nobody_reads(redirect: str, out: str) -> None:
    done = ran(f"{SAY_BOTH}; sys.stdin.isatty(), sys.stderr.isatty(), sys.stdout.isatty()", redirect)
    assert (done.returncode, done.stdout) == (0, out), done.stderr


def test_what_goes_to_a_file_is_utf8_whatever_the_code_page() -> None:
    assert ran(SAY_BOTH, PYTHONIOENCODING="cp1252").stdout == f"{TOLD}\n"


def test_what_comes_from_a_file_is_utf8_whatever_the_code_page() -> None:
    assert ran("console.result(input())", f"<<< '{TOLD}'", PYTHONIOENCODING="cp1252").stdout == f"{TOLD}\n"


def test_a_byte_that_is_no_text_is_replaced() -> None:
    assert ran("console.result(input())", "< <(printf 'a\\xff')").stdout == "a\ufffd\n"


def test_letters_that_a_terminal_has_not_are_replaced(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    subprocess.run(program("console.result(chr(0x201C) + 'a')"), stdout=theirs, check=True, env=environment)
    os.close(theirs)
    assert os.read(ours, 99) == b"?a\r\n"
    os.close(ours)


def test_a_run_goes_on_when_its_terminal_is_gone(terminal: tuple[int, int], tmp_path: Path) -> None:
    body = f"""
with console.progress('training', 9) as bar:
    Path({str(tmp_path / "began")!r}).touch()
    time.sleep(1)
    bar.advance()
    console.note('a')
    console.note('b')
console.result('done')
"""
    ours, theirs = terminal
    child = subprocess.Popen(program(body), stderr=theirs, stdout=subprocess.PIPE, start_new_session=True, text=True)
    os.close(theirs)
    while not (tmp_path / "began").exists():
        os.read(ours, 9999)
    os.close(ours)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "done\n")


def test_results_go_to_their_file_while_progress_is_shown_on_a_terminal(terminal: tuple[int, int]) -> None:
    body = "with console.progress('predicting', 9) as bar:\n    console.result('a')"
    ours, theirs = terminal
    done = subprocess.run(program(body), stderr=theirs, stdout=subprocess.PIPE, check=True)
    os.close(theirs)
    assert done.stdout == b"a\n"
    assert b"predicting" in os.read(ours, 9999)
    os.close(ours)


def test_a_small_screen_breaks_no_line_and_hides_no_progress(terminal: tuple[int, int]) -> None:
    body = """
with console.progress('pretraining', 9) as bar:
    bar.advance(3, 'loss 0.661  0.270 bits/byte  2.42k tokens/s  18% of peak')
    time.sleep(0.3)
    console.result('{"label": "' + 99 * 'a' + '"}')
    console.note('runs/' + 99 * 'b')
"""
    ours, theirs = terminal
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    child = subprocess.Popen(program(body), stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of it
        while more := os.read(ours, 9999):
            shown += more
    os.close(ours)
    assert child.wait() == 0
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert f'{{"label": "{99 * "a"}"}}' in plain
    assert f"runs/{99 * 'b'}" in plain
    assert re.search(r" 33% [-\d:]{7} loss 0.661  0.270 bits/byte", plain)


def test_a_terminal_that_can_draw_nothing_gets_lines(terminal: tuple[int, int]) -> None:
    body = "console.PLAIN_INTERVAL_S = 0\nwith console.progress('training', 9, 'steps') as bar:\n    bar.advance(3)"
    ours, theirs = terminal
    subprocess.run(program(body), stderr=theirs, check=True, env=os.environ | {"TERM": "dumb"})
    os.close(theirs)
    assert os.read(ours, 9999).startswith(b"training: 3/9 steps")
    os.close(ours)


def test_notes_that_nobody_reads_stop_nothing() -> None:
    done = ran("time.sleep(0.3); console.note('a'); console.note('b'); console.result('1')", "2> >(true)")
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_no_run_by_its_log_but_a_command_by_its_output() -> None:
    assert ran(SAY_BOTH, "2> /dev/full").returncode == 0
    done = ran(SAY_BOTH, "> /dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "a note\nerror: the output can't be written: no space left; free some disk\n",
    )
