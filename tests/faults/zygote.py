"""A process that has imported everything and forks for each command: a run starts in 30 ms instead of ten seconds.

It reads requests as JSON lines and answers each with one. `{"start": {...}}` gives `{"pid": n}`, `{"wait": n}` gives
`{"status": n, "cpu_s": x}`, `{"mount": [...]}` gives `{"error": text}`: mounts are seen by the children alone, and end
with this process. A forked child is as the command line is: the same `main`, signals and exit.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
from typing import Any

CLONE_NEWNS = 0x20000  # sched.h
IMPORTED = [
    *("tokenizer.train", "pretrain.prepare", "pretrain.train", "finetune.instruct", "finetune.classify"),
    *("rlhf.reward", "rlhf.ppo", "rlhf.dpo", "rlhf.grpo", "fledge.trl_trainers", "fledge.village_files"),
    *("fledge.cli", "fledge.options", "tokenizer.cli", "pretrain.cli", "finetune.cli", "rlhf.cli"),
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "sklearn.linear_model"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.conversion_mapping"),
]


def serve(shim: ctypes.CDLL) -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                become_command(shim, **request["start"])
            answer: dict[str, Any] = {"pid": pid}
        elif "mount" in request:
            command = ["mount", *request["mount"]]
            answer = {"error": subprocess.run(command, capture_output=True, text=True, check=False).stderr}
        else:
            _, status, usage = os.wait4(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status), "cpu_s": usage.ru_utime + usage.ru_stime}
        print(json.dumps(answer), flush=True)


def become_command(
    shim: ctypes.CDLL, arguments: list[str], folder: str, log: str, said: str, fault: dict[str, Any]
) -> None:
    """Be `fledge ARGUMENTS`, or with `-c` a piece of Python, with a fault.

    Args:
        folder: calls that change something below it are counted, and written to the file `log`.
        said: the file for stdout and stderr.
        fault: `at` and `action`, `is_torn` (see shim.c); `file_bytes`, the largest file that may be written.
    """
    for number in (0, 1, 2):
        os.close(number)
    os.open(os.devnull, os.O_RDONLY)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
    if "file_bytes" in fault:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_bytes"], resource.RLIM_INFINITY))
    counted = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    action, is_torn = fault.get("action", 0), fault.get("is_torn", False)
    shim.fault_arm(os.fsencode(folder), fault.get("at", 0), action, is_torn, counted)
    sys.argv = ["fledge", *arguments]
    from fledge.__main__ import main

    try:
        if arguments[0] == "-c":
            exec(arguments[1])
            sys.exit()
        main()
    except SystemExit as end:  # anything else is a traceback
        sys.stderr.flush()
        os._exit(int(end.code or 0))


def leave_namespace() -> None:
    """From now on see mounts that nobody else sees; who may not do that may not mount either."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)


if __name__ == "__main__":
    leave_namespace()
    preloaded = ctypes.CDLL(os.environ.pop("LD_PRELOAD"))
    for name in IMPORTED:
        importlib.import_module(name)
    if importlib.util.find_spec("deepspeed"):
        importlib.import_module("deepspeed")  # trl looks at it
    sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("gpt2")  # it keeps all
    print("{}", flush=True)
    serve(preloaded)
    os._exit(0)  # nothing to tidy up, and torch takes seconds
