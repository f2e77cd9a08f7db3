"""What is there for GPUs, as far as it can be tried without them: presets, launch files, Slurm's script."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fledge import config
from fledge.__main__ import run
from fledge.data import sources
from fledge.metrics_log import read_metrics
from pretrain import memory, plan
from pretrain.config import PlanConfig, PrepareConfig

GPU = config.CONFIGS / "gpu"
BIN = Path(sys.executable).parent
# GPUs, and the parameters that the name says (the speedrun's: with an output matrix of its own).
PRESETS = {
    "gpt2-124m": (1, 124e6),
    "gpt2-350m": (8, 350e6),
    "qwen3-600m": (8, 600e6),
    "7b": (64, 7e9),
    "gpt2-speedrun": (1, 162e6),
}


def preset(name: str) -> PlanConfig:
    return config.load(PlanConfig, config.shipped(PlanConfig, name), {("gpus",): PRESETS[name][0]})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_its_gpus_as_it_is(name: str) -> None:
    wanted = preset(name)
    num_gpus, parameters = PRESETS[name]
    model = memory.on_meta(wanted, wanted.vocab_size)
    assert model.num_parameters() == pytest.approx(parameters, rel=0.06)
    microbatch = wanted.batch.microbatch
    assert microbatch is not None
    assert wanted.batch.sequences % (num_gpus * microbatch) == 0
    needed = memory.predict(wanted, model, microbatch=microbatch, num_gpus=num_gpus)
    assert needed.total < 80e9 * (1 - plan.HEADROOM)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--config", name, "--gpus", str(PRESETS[name][0]), "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out.splitlines()[-1])["chosen"]
    assert chosen["fits"]
    assert chosen["days"] < 10


def test_the_speedrun_ends_within_half_an_hour() -> None:
    budget = preset("gpt2-speedrun").time_budget
    assert budget is not None
    assert config.parse_duration(budget) < 30 * 60


def test_nothing_claims_to_be_measured() -> None:
    files = [config.shipped(PlanConfig, name) for name in PRESETS] + [GPU / "hostfile", GPU / "slurm.sh"]
    for file in files:
        assert "not measured on a gpu" in file.read_text().lower(), file


def test_fineweb_is_asked_for_by_its_hub_name() -> None:
    wanted = config.load(PrepareConfig, config.shipped(PrepareConfig, "fineweb"))
    assert [source.kind for source in sources.expand(wanted.input)] == ["hub"]


def test_every_command_in_the_launch_files_parses(capsys: pytest.CaptureFixture[str]) -> None:
    commands = []
    for file in (GPU / "hostfile", GPU / "slurm.sh"):
        for line in file.read_text().splitlines():
            if found := re.search(r"--module fledge (pretrain train .*)", line):
                commands.append(shlex.split(found[1]))
            elif found := re.search(r"slurm\.sh RUN (--config .*)", line):
                commands.append(["pretrain", "train", "--out", "RUN", *shlex.split(found[1])])
    assert len(commands) == 3
    for command in commands:
        assert run([*command, "--dry-run"]) == 0
        assert "architecture: qwen3" in capsys.readouterr().out


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment with Slurm's variables, and its commands as far as the script calls them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "scontrol": f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {tmp_path}/calls; fi',
        "srun": f'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & echo $! > {tmp_path}/pid; wait $!',
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return kept | {
        "PATH": f"{commands}:{BIN}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(port - 20000 if port < 40000 else port),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.skipif(os.name == "nt", reason="Slurm runs on Linux")
def test_the_slurm_script_stops_is_queued_again_and_goes_on(
    slurm: dict[str, str], story_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    tiny = ["--config=tiny", "--model.layers=1", "--model.width=16", "--model.heads=2", "--samples.every=0"]
    tiny += ["--run.checkpoint-every=100000", "--run.log-every=1", "--run.dtype=float32"]
    command = ["bash", str(GPU / "slurm.sh"), str(out), "--data", str(story_shards), *tiny]
    job = subprocess.Popen([*command, "--run.max-steps=100000"], env=slurm, stderr=subprocess.DEVNULL)
    while job.poll() is None and not _metrics(out):
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    assert job.wait() == 130
    assert (tmp_path / "calls").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    stopped_at = _metrics(out)[-1]["step"]

    (out / "config.yaml").write_text(
        (out / "config.yaml").read_text().replace("max_steps: 100000", f"max_steps: {stopped_at + 5}")
    )
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"continuing from step-{stopped_at:06d}" in done.stderr
    assert json.loads((out / "result.json").read_text())["steps"] == stopped_at + 5


def _metrics(path: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        return read_metrics(path)
    return []
