"""`fledge` and `python -m fledge`: run the command line and turn errors into one line and an exit code."""

import contextlib
import io
import os
import re
import signal
import sys
import traceback


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 the user can fix it, 2 usage, 3 failed, 130 interrupted."""
    # A model's text may hold what the terminal's encoding has not (Windows' code pages).
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
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
        # The reader of our output is gone (`| head`); point stdout elsewhere so that exiting stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:  # no path that the user gave
            raise
        return _failed(f"{error.filename}: {error.strerror}; check the path and its rights", 1, arguments)


def _failed(message: str, code: int, arguments: list[str]) -> int:
    from fledge import console

    if "--debug" in arguments:
        traceback.print_exc()
    for line in message.splitlines():
        console.note(f"error: {line}")
    return code


if __name__ == "__main__":
    main()
