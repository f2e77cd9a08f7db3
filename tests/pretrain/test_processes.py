"""Pretraining in two processes on a CPU: by both launchers, resumed in other numbers, and failing."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from fledge import processes
from fledge.__main__ import run
from fledge.metrics_log import read_metrics
from fledge.models import folder as model_folder

pytest.importorskip("deepspeed")
# Of DeepSpeed and of what it calls in torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TINY = """
model: {context: 32, layers: 1, width: 16, heads: 2}
batch: {sequences: 4, microbatch: 1}
optim: {optimizer: adamw, weight_decay: 0.1}
run: {max_steps: 6, checkpoint_every: 3, log_every: 1, threads: 1, dtype: float32, device: cpu}
validation: {every: 3, sequences: 5}
samples: {every: 6, max_new_tokens: 2}
"""
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, story_shards: Path) -> list[str]:
    """The arguments of a tiny run."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY)
    return ["pretrain", "train", "--data", str(story_shards), "--config", str(file)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | more


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def torchrun(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [*TORCHRUN, "--nproc_per_node=2", f"--master_port={free_port()}", "-m", "fledge"]
    return subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=environment(), check=False)


def losses(out: Path) -> list[float]:
    return [value for line in read_metrics(out) for name, value in line.items() if name.endswith("loss")]


def cut(out: Path) -> None:
    """Make a finished run one that was killed after step 3."""
    shutil.rmtree(out / "checkpoints" / "step-000006")
    (out / "result.json").unlink()


@pytest.fixture(scope="module")
def two(train: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, by torchrun."""
    out = tmp_path_factory.mktemp("two") / "r"
    done = torchrun([*train, "--engine.zero=2", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("DeepSpeed over 2 processes, ZeRO 2") == 1  # only one process speaks
    assert done.stdout.startswith(f"# {out}")
    assert yaml.safe_load((out / "config.yaml").read_text())["engine"]["kind"] == "deepspeed"
    return out


def test_two_processes_give_the_losses_of_one(two: Path, train: list[str], tmp_path: Path) -> None:
    assert run([*train, "--out", str(tmp_path / "one")]) == 0
    assert losses(two) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_two_nodes_give_the_losses_of_two_processes(two: Path, train: list[str], tmp_path: Path) -> None:
    """Two launchers that know each other by address only, here both on this machine."""
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    command = ["-m", "fledge", *train, "--engine.zero=2", "--out", str(tmp_path / "r")]
    nodes = [
        subprocess.Popen(
            [*TORCHRUN, *meeting, f"--node_rank={rank}", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in (0, 1)
    ]
    errors = [node.communicate(timeout=120)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert losses(tmp_path / "r") == losses(two)


def test_two_processes_are_continued_by_one(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    shutil.copytree(two, out)
    cut(out)
    assert run(["pretrain", "train", "--resume", str(out)]) == 0
    assert losses(out) == pytest.approx(losses(two), abs=1e-5)
    assert not list((out / "checkpoints").glob(".*"))


def test_one_process_is_continued_by_two_of_the_deepspeed_launcher(train: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run([*train, "--engine.zero=3", "--out", str(one)]) == 0
    shutil.copytree(one, two)
    cut(two)
    launcher = [str(BIN / "deepspeed"), "--num_accelerators=2", f"--master_port={free_port()}", "--module"]
    done = subprocess.run(
        [*launcher, "fledge", "pretrain", "train", "--resume", str(two), "--json"],
        capture_output=True,
        text=True,
        env=environment(PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    states = [torch.load(two / "checkpoints/step-000006" / name) for name in ("state.pt", "state-1.pt")]
    assert not torch.equal(states[0]["rng"], states[1]["rng"])  # the new process drops other activations
    saved = [model_folder.read_tensors(out / "model") for out in (one, two)]
    assert {name: t.shape for name, t in saved[0].items()} == {n: t.shape for n, t in saved[1].items()}
    result = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert result["parameters"] == sum(tensor.numel() for tensor in saved[1].values())


def start_pair(command: list[str]) -> list[subprocess.Popen[str]]:
    """Two ranks without a launcher, which would end the second by itself."""
    port = str(free_port())
    pair = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port} for rank in (0, 1)]
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(MASTER_ADDR="127.0.0.1", **values),
        )
        for values in pair
    ]


LATE = """
import threading
from fledge import processes
from fledge.__main__ import main
def late(tell):
    def told_late(value):
        found = tell(value)
        threading.Event().wait(0.5 * processes.rank())
        return found
    return told_late
processes.same, processes.gathered = late(processes.same), late(processes.gathered)
main()
"""


def test_finished_processes_get_more_steps_however_late_one_of_them_is(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    shutil.copytree(two, out)
    more = ["pretrain", "train", "--resume", str(out), "--run.max-steps=7"]
    pair = start_pair([sys.executable, "-c", LATE, *more])
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert [line["step"] for line in read_metrics(out) if "loss" in line] == list(range(1, 8))


@pytest.mark.parametrize(
    ("lost", "how", "message"),
    [
        (1, signal.SIGKILL, f"error: rank 1 on {socket.gethostname()} died: no sign of life for"),
        (1, signal.SIGSTOP, f"error: rank 1 on {socket.gethostname()} died: no sign of life for"),
        (0, signal.SIGKILL, "error: rank 0 on 127.0.0.1, or its launcher, is gone"),
    ],
)
def test_a_lost_process_ends_the_other_which_names_it(
    lost: int, how: signal.Signals, message: str, train: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "r"
    options = ["--run.max-steps=100000", "--engine.patience=15", "--out", str(out)]
    pair = start_pair([sys.executable, "-m", "fledge", *train, *options])
    while not list(out.glob("checkpoints/step-*")):
        assert [process.poll() for process in pair] == [None, None]
        time.sleep(0.05)  # watches other processes' folder
    pair[lost].send_signal(how)
    _, stderr = pair[1 - lost].communicate(timeout=60)
    pair[lost].kill()
    pair[lost].communicate()
    assert message in stderr
    assert "Traceback" not in stderr
    assert pair[1 - lost].returncode == 3


HANGS = """
import threading
from fledge import processes
with processes.joined():
    processes.set_patience(2)
    with processes.lockstep():
        if processes.rank() == 1:
            threading.Event().wait()
        processes.progress()
        processes.wait_for_all()
"""


def test_a_process_that_hangs_ends_all_and_is_named() -> None:
    pair = start_pair([sys.executable, "-c", HANGS])
    errors = [process.communicate(timeout=60)[1] for process in pair]
    assert f"error: rank 1 on {socket.gethostname()} hangs: no progress for" in errors[0]
    assert errors[1] == ""  # only the first process speaks
    assert [process.returncode for process in pair] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine.kind=torch"], "--engine.kind torch runs in one process, here are 2"),
        (["--batch.sequences=3"], "--batch.sequences 3 can't be shared by 2 processes in microbatches of 1"),
        (["--engine.kind=torch", "--engine.zero=1"], "leave out --engine.zero, or use --engine.kind deepspeed"),
        (["--engine.bf16=weights"], "bfloat16 weights need a ZeRO stage"),
    ],
)
def test_wrong_settings_are_named(
    arguments: list[str],
    message: str,
    train: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(processes, "joined", processes.lockstep)
    monkeypatch.setattr(processes, "same", lambda value: value)
    assert run([*train, *arguments, "--out", str(tmp_path / "r")]) == 1
    assert message in capsys.readouterr().err


def test_other_commands_run_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    tokenizer = ["tokenizer", "train", "--input", "village:hamlet", "--out", str(tmp_path / "t")]
    assert run(tokenizer) == 2
    assert "fledge tokenizer train runs in one process, here are 2" in capsys.readouterr().err
    assert run(["pretrain", "train", "--data", "x", "--seeds=1,2"]) == 2
    assert "--seeds runs in one process" in capsys.readouterr().err


def test_without_deepspeed_the_extra_is_named(
    train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else found(name))
    assert run([*train, "--engine.zero=1", "--out", str(tmp_path / "r")]) == 1
    assert "not installed; pip install 'fledge-lm[deepspeed]'" in capsys.readouterr().err


@pytest.mark.slow  # the compiler takes half a minute
def test_compiled_blocks_give_the_losses_of_eager_ones(train: list[str], tmp_path: Path) -> None:
    for name, option in (("eager", "--no-compile"), ("compiled", "--compile")):
        done = torchrun([*train, "--engine.zero=2", option, "--out", str(tmp_path / name)])
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=1e-5)
