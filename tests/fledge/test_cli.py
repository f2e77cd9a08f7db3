"""The root of the command line."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fledge.__main__ import run
from fledge.cli import cli
from fledge.life_map import following
from fledge.metrics_log import last_loss


def test_the_root_lists_stages_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert "tokenizer" in out
    assert "pretrain" in out
    assert "doctor" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fledge ")


def test_a_dry_run_in_json_is_the_config_that_is_else_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "sample", "runs/base", "--prompt=x", "--dry-run"]
    assert run(command) == 0
    as_yaml = yaml.safe_load(capsys.readouterr().out)
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == as_yaml


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["pretrain", "trian"], "No such command 'trian'"),
        (["pretrain", "train", "--nonsense"], "No such option"),
        (["pretrain", "train", "--out", "x", "--resume", "y"], "--out and --resume can't be given together"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert message in capsys.readouterr().err


TRAIN, CLASSIFY = ["pretrain", "train", "--data=x"], ["finetune", "classify", "m", "--data=x"]
PREPARE = ["pretrain", "prepare", "--input=x", "--tokenizer=t"]
PPO = ["rlhf", "ppo", "m", "--reward=x", "--prompts=x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TRAIN, "--size=2", "--optim.learning-rate=1"], "--optim.learning-rate does nothing with --size"),
        ([*TRAIN, "--size=2", "--model.layers=5"], "--model.layers does nothing with --size;"),
        (
            [*TRAIN, "--optim.optimizer=adamw", "--optim.momentum=0.1"],
            "--optim.momentum does nothing with --optim.optimizer adamw; change that, or leave this out",
        ),
        (
            [*TRAIN, "--schedule.kind=cosine", "--schedule.decay=1"],
            "--schedule.decay does nothing with --schedule.kind",
        ),
        ([*PREPARE, "--validation-tail=0.1", "--validation-share=0.2"], "--validation-share does nothing with"),
        ([*CLASSIFY, "--lora.alpha=8"], "--lora.alpha does nothing without --lora.rank"),
        ([*CLASSIFY, "--folds=2", "--split.test-share=0.5"], "--split.test-share does nothing with --folds"),
        ([*CLASSIFY, "--label-draws=3"], "--label-draws does nothing without --label-budget"),
        ([*CLASSIFY, "--split.draw=3"], "--split.draw does nothing without --split.labels"),
        (["eval", "run", "m", "--task=copa", "--suite=full"], "--suite does nothing with --task; change that"),
        (["plan", "--data=x", "--vocab-size=9"], "--vocab-size does nothing with --data;"),
        ([*PPO, "--kl.horizon=9"], "--kl.horizon does nothing without --kl.target"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--dry-run"]) == 1
    assert f"error: {message}" in capsys.readouterr().err


def test_a_file_may_hold_settings_that_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*CLASSIFY, "--dry-run"]) == 0
    whole = capsys.readouterr().out
    (tmp_path / "own.yaml").write_text(whole, encoding="utf-8")
    assert run(["finetune", "classify", f"--config={tmp_path}/own.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out == whole


def test_the_help_says_which_config_its_defaults_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "train", "--help"]) == 0
    assert "in place of default.yaml, whose values stand as defaults below" in " ".join(capsys.readouterr().out.split())


def test_missing_required_settings_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "train"]) == 1
    assert "error: --data is required" in capsys.readouterr().err
    assert run(["pretrain", "sample"]) == 1
    assert "error: MODEL is required" in capsys.readouterr().err


def test_an_empty_stop_string_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "sample", "anything", "--stop", ""]) == 1
    assert "--stop '': an empty text stands everywhere; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_out_of_memory_anywhere_says_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crowded(*arguments: Any, **others: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "main", crowded)
    assert run(["finetune", "instruct"]) == 1
    assert capsys.readouterr().err == "error: out of memory; use a smaller batch (--batch.*) or model\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "train", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_shows_unit_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--run.max-steps INT optimizer updates [steps; default: " in text
    assert "--data TEXT token shards: a `pretrain prepare` run, or its shards folder [required]" in text


def test_the_deepspeed_launchers_rank_is_taken_and_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--local_rank", "0", "--help"]) == 0
    assert "local_rank" not in capsys.readouterr().out


def test_only_rank_0_speaks() -> None:
    code = "from fledge import console; console.note('a'); console.result('b')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"RANK": "1", "WORLD_SIZE": "2"}
    )
    assert done.stdout + done.stderr == ""


def test_doctor_reports_devices_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"][0]["device"] == "cpu"
    assert facts["devices"][0]["matmul_peak"]["float32"] > 1e9
    assert "torch" in facts["versions"]
    assert run(["doctor"]) == 0
    assert "device    cpu" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["runs"], ["pretrain", "sample"], ["tokenizer", "show", "--text=a"]])
def test_a_path_that_the_system_refuses_is_one_error(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "n" * 300]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "nn: File name too long; check the path and its rights" in told


def test_a_refused_path_leaves_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "train", "--input", "n" * 300, "--out", str(tmp_path / "r")]) == 1
    assert "File name too long" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["pretrain", "train", "--data=x", "--run.seed"], "--run.seed: input should be less than 9223372036854775808"),
        (["tokenizer", "train", "--input=x", "--vocab-size"], "--vocab-size: input should be less than or equal to"),
    ],
)
def test_a_number_beyond_all_bounds_is_refused(
    option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*option, "9" * 23, "--dry-run"]) == 1
    assert message in capsys.readouterr().err


def damage(folder: Path) -> None:
    """Three runs, the newest without lineage and the one before with a torn log."""
    for time, name in enumerate(("whole", "torn", "empty")):
        (folder / name).mkdir(parents=True)
        (folder / name / "lineage.json").write_text('{"command": "pretrain train", "parents": []}')
        (folder / name / "metrics.jsonl").write_text('{"loss": 2.5}\n')
        (folder / name / "config.yaml").touch()
        os.utime(folder / name / "config.yaml", (time, time))
    (folder / "torn" / "metrics.jsonl").write_bytes(b'{"loss": 2.5}\n\0\0\n')
    (folder / "empty" / "lineage.json").write_text("")


def test_a_damaged_run_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(tmp_path)
    assert run(["runs", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    found = [(r["state"], r["command"], r["last_loss"]) for r in json.loads(shown.out)["runs"]]
    assert found == [("interrupted", "pretrain train", 2.5), ("damaged", "pretrain train", None), ("damaged", "", None)]
    assert f"{tmp_path}/empty: damaged ({tmp_path}/empty/lineage.json: can't be read" in shown.err
    assert following(tmp_path) == [f"fledge pretrain train --resume {tmp_path}/whole"]


@pytest.mark.parametrize(("before", "after"), [(20_000, 9), (9, 20_000)])
def test_the_last_loss_of_a_long_run_is_found_wherever_it_stands(before: int, after: int, tmp_path: Path) -> None:
    steps = [{"step": n, "loss": n / 2} for n in range(before)] + [{"step": n, "tokens": 1} for n in range(after)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps) + '{"step": 9, "lo')
    assert last_loss(tmp_path) == (before - 1) / 2


def test_the_last_loss_is_read_from_the_end(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("not read\n" + '{"loss": 2.5}\n' * 9999)
    assert last_loss(tmp_path) == 2.5


def test_runs_behind_links_are_listed_and_a_vanished_file_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "whole")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    # Listed, and gone when its size is asked for, as a checkpoint that is pruned meanwhile.
    (tmp_path / "elsewhere" / "whole" / "pruned").symlink_to("gone")
    monkeypatch.setattr(Path, "is_file", lambda path: path.name == "pruned" or os.path.isfile(path))  # noqa: PTH113
    assert run(["runs", str(tmp_path / "runs"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["run"] == str(tmp_path / "runs" / "linked")
    assert found["bytes"] == 58


def test_an_argument_that_is_not_utf8_is_one_error() -> None:
    command = [sys.executable, "-m", "fledge", "pretrain", "sample", "anything", "--prompt", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = "error: an argument is not UTF-8; set the terminal to UTF-8, or give the text in a file\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_runs_of_a_missing_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m fledge pretrain train --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_pipe_that_is_closed_amid_a_command_is_no_error() -> None:
    say = "click.Command('doctor', callback=lambda: [console.result('a' * 999) for _ in range(999)])"
    code = f"import click; from fledge import __main__, console, doctor; doctor.doctor = {say}; __main__.main()"
    command = f'{sys.executable} -c "{code}" doctor | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_outside_of_a_loop_is_an_interruption() -> None:
    stop = "click.Command('doctor', callback=lambda: os.kill(os.getpid(), signal.SIGTERM))"
    code = f"import os, signal, click; from fledge import __main__, doctor; doctor.doctor = {stop}; __main__.main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nerror: interrupted\n")


def test_a_stage_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    stranger = tmp_path / "tokenizer"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("")
    (stranger / "cli.py").write_text("cli = None")
    done = subprocess.run(
        [sys.executable, "-m", "fledge", "tokenizer"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "the package 'tokenizer' comes from" in done.stderr


def test_a_module_called_like_a_stage_is_refused_by_all_stages(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.py").write_text("")
    command = [sys.executable, "-m", "fledge", "pretrain"]  # which imports from the stage `tokenizer`
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the package 'tokenizer' comes from {tmp_path}/tokenizer.py")


def begun(**settings: str) -> subprocess.CompletedProcess[str]:
    """A command without a config, so that its error comes before any process waits for another."""
    command = [sys.executable, "-m", "fledge", "pretrain", "train", "--data=x", "--config=none.yaml"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)


@pytest.mark.parametrize("settings", [{"RANK": "1"}, {"WORLD_SIZE": ""}, {"RANK": "3", "WORLD_SIZE": "1"}])
def test_what_a_cluster_left_in_the_environment_silences_no_single_process(settings: dict[str, str]) -> None:
    assert begun(**settings).stderr == "error: none.yaml: no such config file\n"


def test_an_error_that_only_another_process_has_is_told_by_it() -> None:
    done = begun(RANK="1", WORLD_SIZE="2")
    assert done.returncode == 1
    assert done.stderr == f"error: rank 1 on {platform.node()}: none.yaml: no such config file\n"


def test_processes_without_an_address_to_meet_at_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert run(["pretrain", "train", "--data=x", "--out", str(tmp_path / "r")]) == 2
    assert "WORLD_SIZE is 2, but MASTER_ADDR is not set; unset it, or use torchrun" in capsys.readouterr().err
