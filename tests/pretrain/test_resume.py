"""`fledge pretrain train --resume`: what may be repeated, what may change, and what must never be lost."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from fledge import checkpoints, config, rundir
from fledge.__main__ import run
from fledge.metrics_log import read_metrics
from pretrain.config import TrainConfig
from pretrain.session import Counters, Session, model_of_checkpoint
from pretrain.train import _roll_back
from pretrain.training_data import TrainingData

TINY = """
model: {context: 32, layers: 1, width: 16, heads: 2}
batch: {sequences: 2}
run: {seed: 0, max_steps: 6, checkpoint_every: 2, log_every: 2, threads: 1, dtype: float32}
validation: {every: 2, sequences: 2}
samples: {every: 0}
"""
RESUME = ["pretrain", "train", "--resume"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def out(story_shards: Path, tiny: Path, tmp_path: Path) -> Path:
    """A finished run of 6 steps."""
    out = tmp_path / "r"
    train = ["pretrain", "train", "--data", str(story_shards), "--out", str(out), "--config", str(tiny)]
    assert run([*train, "--run.log-every=3"]) == 0
    return out


def steps(out: Path) -> list[int]:
    return [checkpoints.step_of(checkpoint) for checkpoint in checkpoints.listed(out / "checkpoints")]


def test_the_config_may_be_repeated_alone_or_with_all_options(out: Path, tiny: Path, story_shards: Path) -> None:
    assert run([*RESUME, str(out), "--config", str(tiny)]) == 0
    both = ["--config", str(tiny), "--data", str(story_shards), "--run.log-every=3", "--run.device=auto"]
    assert run([*RESUME, str(out), *both]) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["run"]["log_every"] == 3


def test_a_typed_value_counts_though_the_config_had_it_at_first(story_shards: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert run(["pretrain", "train", "--data", str(story_shards), "--out", str(out), "--config", str(tiny)]) == 0
    for steps, log_every in ((8, 1), (10, 2)):  # 2 is what the config says
        assert run([*RESUME, str(out), f"--run.max-steps={steps}", f"--run.log-every={log_every}"]) == 0
        assert yaml.safe_load((out / "config.yaml").read_text())["run"]["log_every"] == log_every


def test_a_config_that_differs_is_an_error(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(TINY.replace("sequences: 2}\nrun", "sequences: 4}\nrun"))
    assert run([*RESUME, str(out), "--config", str(other)]) == 1
    assert f"--config {other}: --batch.sequences 4: the run has 2" in capsys.readouterr().err


def test_a_dry_run_shows_the_config_and_changes_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert run([*RESUME, str(out), "--run.max-steps=8", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["max_steps"] == 8
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_finished_run_without_checkpoints_keeps_its_model(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(out / "checkpoints")
    assert run([*RESUME, str(out), "--run.max-steps=8"]) == 1
    assert f"train its model further in a new run, with --init {out}" in capsys.readouterr().err
    assert (out / "model" / "model.safetensors").is_file()
    assert (out / "result.json").is_file()


def test_asking_for_more_in_vain_leaves_a_finished_run_finished(
    out: Path, story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (out / name).read_bytes() for name in ("config.yaml", "result.json")}
    story_shards.rename(tmp_path / "away")
    try:
        assert run([*RESUME, str(out), "--run.max-steps=8"]) == 1
    finally:
        (tmp_path / "away").rename(story_shards)
    assert {name: (out / name).read_bytes() for name in before} == before
    assert run([*RESUME, str(out), "--run.max-steps=8"]) == 0
    assert steps(out)[-1] == 8


@pytest.fixture
def home(story_shards: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run of 6 steps whose every path was given relative to it."""
    home = tmp_path / "home"
    shutil.copytree(story_shards, home / "shards")
    monkeypatch.chdir(home)
    assert run(["pretrain", "train", "--data", "shards", "--out", "runs/r", "--config", str(tiny)]) == 0
    return home


def test_relative_paths_hold_when_resumed_from_another_folder(
    home: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny, "typed-here.yaml")
    assert run([*RESUME, "home/runs/r", "--config", "./typed-here.yaml", "--data", "shards", "--run.max-steps=8"]) == 0
    assert steps(home / "runs/r")[-1] == 8
    assert Path.cwd() == tmp_path


def test_relative_paths_of_a_moved_run_are_meant_from_here(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "home" / "runs").mkdir(parents=True)
    assert run([*RESUME, "runs/r", "--run.max-steps=8"]) == 0


def test_a_run_that_was_moved_with_its_shards_is_resumed_from_anywhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert run([*RESUME, "elsewhere/runs/r", "--run.max-steps=8"]) == 0
    assert steps(tmp_path / "elsewhere/runs/r")[-1] == 8


def test_shards_that_were_moved_are_named_and_known_by_their_content(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("shards", tmp_path / "other")
    shard = next((tmp_path / "other").glob("**/train-00000.bin"))
    shard.write_bytes(shard.read_bytes()[::-1])
    Path("shards").rename(tmp_path / "away")
    resume = [*RESUME, "runs/r", "--run.max-steps=8"]
    assert run(resume) == 1
    assert "runs/r: its shards are no longer in shards; say with --data where they are" in capsys.readouterr().err
    before = Path("runs/r/config.yaml").read_bytes()
    assert run([*resume, "--data", str(tmp_path / "other")]) == 1
    assert "runs/r: its parents changed since the run began" in capsys.readouterr().err
    assert Path("runs/r/config.yaml").read_bytes() == before
    assert run([*resume, "--data", str(tmp_path / "away")]) == 0
    assert run([*RESUME, "runs/r", "--run.max-steps=10"]) == 0


def test_seeds_not_begun_find_their_relative_paths_from_another_folder(
    home: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["pretrain", "train", "--data", "shards", "--config", str(tiny), "--seeds=0,1", "--out", "runs/two"]
    assert run(train) == 0
    shutil.rmtree("runs/two/seed-1")
    monkeypatch.chdir(tmp_path)
    assert run([*RESUME, "home/runs/two"]) == 0
    assert (home / "runs/two/seed-1/model").is_dir()


def test_a_damaged_newest_checkpoint_does_not_push_out_the_new_ones(out: Path) -> None:
    (out / "checkpoints" / "step-000006").rename(out / "checkpoints" / "step-000900")
    (out / "checkpoints" / "step-000900" / checkpoints.MANIFEST).unlink()
    (out / "result.json").unlink()
    assert run([*RESUME, str(out), "--run.keep-checkpoints=1"]) == 0
    assert 6 in steps(out)
    assert 900 not in steps(out)


@pytest.fixture
def two_seeds(story_shards: Path, tiny: Path, tmp_path: Path) -> list[str]:
    """A command that trains two seeds."""
    start = ["pretrain", "train", "--data", str(story_shards), "--config", str(tiny), "--seeds=1,2"]
    return [*start, "--out", str(tmp_path / "seeds")]


def test_seeds_are_continued_where_they_were_stopped(
    two_seeds: list[str], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seeds"
    command = [sys.executable, "-m", "fledge", *two_seeds, "--run.max-steps=60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("seed-1/checkpoints/step-*")):
        time.sleep(0.01)  # watches another process's folder
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert f"error: stopped in seed 1; continue with --resume {out}\n" in stderr
    assert run([*RESUME, str(out), "--seeds=1,2", "--json", "--config", str(tiny)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["results"]["steps"]["values"] == [60, 60]
    assert run([*RESUME, str(out), "--seeds=1,3"]) == 1
    assert "--seeds: the run has 1,2; leave it out" in capsys.readouterr().err
    assert run([*RESUME, str(out), "--batch.sequences=4"]) == 1
    assert "--batch.sequences 4: the run has 2" in capsys.readouterr().err


def test_seeds_with_a_wrong_setting_leave_no_folder(two_seeds: list[str], tmp_path: Path) -> None:
    assert run([*two_seeds, "--model.heads=5"]) == 1
    assert not (tmp_path / "seeds").exists()


def test_seeds_never_overwrite_a_file(two_seeds: list[str], tmp_path: Path) -> None:
    (tmp_path / "seeds").write_text("mine")
    assert run(two_seeds) == 1
    assert (tmp_path / "seeds").read_text() == "mine"


def test_dropout_goes_on_where_it_was(story_shards: Path, tiny: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train = ["pretrain", "train", "--data", str(story_shards), "--out", str(whole), "--config", str(tiny)]
    assert run([*train, "--model.architecture=gpt2", "--model.dropout=0.3", "--run.keep-checkpoints=9"]) == 0
    shutil.copytree(whole, cut)
    for gone in ("checkpoints/step-000004", "checkpoints/step-000006", "model"):
        shutil.rmtree(cut / gone)
    (cut / "result.json").unlink()
    assert run([*RESUME, str(cut)]) == 0
    first, second = ((path / "model" / "model.safetensors").read_bytes() for path in (whole, cut))
    assert first == second


def test_a_session_that_is_rolled_back_leaves_out_the_batches_read_since(out: Path) -> None:
    settings, checkpoint = config.load(TrainConfig, out / "config.yaml"), out / "checkpoints" / "step-000004"
    session = Session(settings, model_of_checkpoint(checkpoint), TrainingData.open(settings.data).train)
    session.restore(checkpoint)
    weights = [weight.clone() for weight in session.model.parameters()]
    session.train_step()
    session.counters.elapsed_s = spent = session.counters.elapsed_s + 9
    session.roll_back(checkpoint)
    assert (session.counters.step, session.counters.batch_index, session.counters.elapsed_s) == (4, 5, spent)
    assert session.rolled_back_to == 4
    assert all(map(torch.equal, session.model.parameters(), weights))


class FakeSession:
    """Remembers where it was rolled back to, as a session does."""

    def __init__(self) -> None:
        self.counters, self.rolled_back_to = Counters(step=9), None

    def roll_back(self, checkpoint: Path) -> None:
        self.rolled_back_to = checkpoints.step_of(checkpoint)


def test_a_roll_back_that_did_not_help_goes_further_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "lineage.json").write_text("{}")
    for step in (4, 8):
        with checkpoints.write(tmp_path / "checkpoints", step) as partial:
            (partial / "state").write_text("s")
    session, went_to = FakeSession(), []
    with rundir.reopen(tmp_path) as folder:
        for _ in range(3):
            _roll_back(session, folder)  # type: ignore[arg-type]
            went_to.append(session.rolled_back_to)
    assert went_to == [8, 4, 4]  # the last one stays
    assert steps(tmp_path) == [4]  # a resumed run must not take the bad one again


def test_a_roll_back_takes_the_abandoned_steps_out_of_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "lineage.json").write_text("{}")
    with rundir.reopen(tmp_path) as folder:
        for step in (1, 2, 3):
            folder.log({"step": step, "loss": 1.0})
            if step == 2:
                with folder.checkpoint(step) as partial:
                    (partial / "state").write_text("s")
        _roll_back(FakeSession(), folder)  # type: ignore[arg-type]
        folder.log({"step": 3, "loss": 2.0})
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]
