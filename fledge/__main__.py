"""`fledge` and `python -m fledge`: run the command line and turn errors into one line and an exit code."""

import contextlib
import errno
import os
import platform
import re
import signal
import sys
import time
import traceback

from fledge import standard_streams


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 the user can fix it, 2 usage, 3 failed, 130 interrupted."""
    standard_streams.put_right()
    # Outside of a loop, which stops politely by itself, these are what Ctrl-C is.
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    code = run(sys.argv[1:])
    if "LOCAL_RANK" in os.environ:
        # One of several processes: a thread of gloo's may still want to drop a tensor, and aborts if Python shuts down.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line in this process and give its exit code."""
    import click

    from fledge.cli import cli
    from fledge.errors import FledgeError, is_out_of_memory

    if re.search("[\udc80-\udcff]", "".join(arguments)):  # how Python keeps bytes that are not UTF-8
        return _failed("an argument is not UTF-8; set the terminal to UTF-8, or give the text in a file", 2, arguments)
    stdout = sys.stdout
    try:
        cli.main(arguments, prog_name="fledge", standalone_mode=False)
        sys.stdout.flush()
        return 0
    except FledgeError as error:
        return _failed(str(error), error.exit_code, arguments)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", 130, arguments)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed("out of memory; use a smaller batch (--batch.*) or model", 1, arguments)
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and sys.stdout is stdout:  # else it is click's answer to a closed pipe
            raise
        return _output_is_gone()  # its reader is (`| head`)
    except OSError as error:
        if error.errno == errno.EINVAL and os.name == "nt":  # what a closed pipe is there
            return _output_is_gone()
        if error.errno == errno.ENOSPC and error.filename is None:
            _output_is_gone()
            return _failed("the output can't be written: no space left; free some disk", 1, arguments)
        if error.filename is None:  # no path that the user gave
            raise
        return _failed(f"{error.filename}: {error.strerror}; check the path and its rights", 1, arguments)


def _output_is_gone() -> int:
    """Point stdout elsewhere, so that exiting stays quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _failed(message: str, code: int, arguments: list[str]) -> int:
    from fledge import console, processes

    if "--debug" in arguments:
        traceback.print_exc()
    if not processes.is_first() and code != 130:
        # Mostly the first process has the same error, and says so; then a launcher ends this one meanwhile.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)
        print(f"error: rank {processes.rank()} on {platform.node()}: {message}", file=sys.stderr)
    for line in message.splitlines():
        console.note(f"error: {line}")
    return code


if __name__ == "__main__":
    main()
