"""Run folders: never overwritten, locked, described."""

import importlib.util
import json
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from fledge import lineage, rundir
from fledge.config import CommandConfig, RunConfig
from fledge.errors import RunError
from fledge.metrics_log import MetricsLog


class Command(CommandConfig):
    """A command."""

    stage: ClassVar[str] = "stage"
    command: ClassVar[str] = "command"
    data: str = Field("d", description="where")
    run: RunConfig = RunConfig()


def test_a_new_run_has_config_and_lineage(tmp_path: Path) -> None:
    with rundir.create(Command(), tmp_path / "r") as folder:
        record = lineage.read(folder.path)
    assert rundir.is_run(tmp_path / "r")
    assert record["command"] == "stage command"
    assert record["seed"] == 0
    assert "torch" in record["versions"]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    rundir.create(Command(), tmp_path / "r").__exit__()
    with pytest.raises(RunError, match=r"exists already and is never overwritten; .* --resume"):
        rundir.create(Command(), tmp_path / "r")


def test_a_foreign_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="never overwritten; choose another --out"):
        rundir.create(Command(), tmp_path / "r")


@pytest.mark.parametrize("left", [[".lock"], [".lock", "lineage.json", ".config.yaml.partial"]])
def test_a_folder_whose_making_was_killed_can_be_used(tmp_path: Path, left: list[str]) -> None:
    (tmp_path / "r").mkdir()
    for name in left:
        (tmp_path / "r" / name).write_text("")
    rundir.create(Command(), tmp_path / "r").__exit__()
    assert rundir.is_run(tmp_path / "r")


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    with rundir.create(Command(), tmp_path / "r") as folder:
        code = "import sys; from pathlib import Path; from fledge import rundir; rundir.reopen(Path(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=False
        )
        assert "in use by another process" in done.stderr
        assert rundir.state(folder.path) == "running"
    assert rundir.state(tmp_path / "r") == "interrupted"


def test_the_next_free_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        rundir.create(Command(), None).__exit__()
    assert sorted(p.name for p in Path("runs").iterdir()) == ["stage-command-1", "stage-command-2"]


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]

    with rundir.create(Command(), tmp_path / "r") as folder:
        for step in (1, 2, 3):
            folder.log({"step": step, "loss": 1.0})
            folder.log_sample({"step": step, "text": "x"})
        with folder.checkpoint(2) as partial:
            (partial / "state").write_text("s")
    with (tmp_path / "r/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the kill cut this line
    with rundir.reopen(tmp_path / "r") as folder:
        folder.log({"step": 3, "loss": 1.0})
    assert steps() == [1, 2, 3]
    samples = [json.loads(line)["step"] for line in (tmp_path / "r/samples.jsonl").read_text().splitlines()]
    assert samples == [1, 2]


def test_samples_before_the_first_metrics_are_kept(tmp_path: Path) -> None:
    with rundir.create(Command(), tmp_path / "r") as folder:
        folder.log_sample({"step": 1, "text": "x"})
        folder.log({"step": 2, "loss": 1.0})
        assert [sample["step"] for sample in folder.samples()] == [1]


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c", "\r"])
def test_a_sample_with_odd_line_ends_comes_back(tmp_path: Path, separator: str) -> None:
    sample = {"step": 1, "text": f"a{separator}b"}
    with rundir.create(Command(), tmp_path / "r") as folder:
        folder.log_sample(sample)
        with folder.checkpoint(1):
            pass
    with rundir.reopen(tmp_path / "r") as folder:
        folder.log({"step": 2, "loss": 1.0})
        assert folder.samples() == [sample]


def test_metric_names_come_from_one_vocabulary(tmp_path: Path) -> None:
    with rundir.create(Command(), tmp_path / "r") as folder, pytest.raises(AssertionError, match="los"):
        folder.log({"step": 1, "los": 1.0})


def test_a_disk_too_full_for_metrics_is_one_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, [], None)
    with pytest.raises(RunError, match="no space left"):
        log.log({"step": 1, "loss": 1.0})
    log.close()


def test_a_full_disk_is_one_error_in_every_process(tmp_path: Path) -> None:
    folder = rundir.FollowersFolder(tmp_path, None)
    with pytest.raises(RunError, match="no space left to write it"), folder.checkpoint(1):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3328 vs 3220")  # torch's


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with rundir.create(Command(), tmp_path / "r") as folder:
        folder.track_with(["tensorboard"])
        folder.log({"step": 1, "loss": 1.0, "gradient_norm": None})
    assert list((tmp_path / "r/tensorboard").glob("events*"))


def test_a_resumed_run_goes_on_in_its_own_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = types.SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
    begun: list[str] = []
    theirs = types.ModuleType("wandb")
    theirs.init = lambda **settings: begun.append(settings["id"]) or session  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "wandb", theirs)
    for name in ("a/run", "a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        log = MetricsLog(tmp_path / name, ["wandb"], None)
        log.log({"step": 1, "loss": 1.0})
        log.close()
    first, again, other = begun
    assert first == again != other


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    with (
        rundir.create(Command(), tmp_path / "r") as folder,
        pytest.raises(RunError, match=r"--run\.trackers wandb: not installed; pip install 'fledge-lm\[wandb\]'"),
    ):
        folder.track_with(["wandb"])  # before step 0, not at the first line


def test_only_a_second_ctrl_c_stops_at_once_and_the_first_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with rundir.create(Command(), tmp_path / "r") as folder, folder.stopping_politely():
        for number in rundir.STOPS:  # Slurm sends several, one after the other
            signal.raise_signal(number)
        assert folder.stop_requested
        assert capfd.readouterr().err == "\nstopping after this step; Ctrl-C again stops at once\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_after_a_run_stops_mean_what_they_meant(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in rundir.STOPS]
    with rundir.create(Command(), tmp_path / "r") as folder, folder.stopping_politely():
        assert before != [signal.getsignal(number) for number in rundir.STOPS]
    assert before == [signal.getsignal(number) for number in rundir.STOPS]


def test_reopening_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        rundir.reopen(tmp_path)


def test_too_little_disk_is_said_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"GB free, but checkpoints need about 1000000000\.00 GB; free some disk"):
        rundir.require_disk(tmp_path, 1e18, "checkpoints")


def test_a_parent_is_found_from_elsewhere_and_where_it_moved_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/runs/old/model").mkdir(parents=True)
    (tmp_path / "a/runs/old/model/config.json").write_text("1")
    (tmp_path / "a/runs/old/lineage.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "a")
    parent = lineage.parent(Path("runs/old/model"), "model")
    rundir.create(Command(), Path("runs/new")).__exit__()
    assert lineage.located(Path("runs/new"), parent) == Path("runs/old/model")
    monkeypatch.chdir(tmp_path)
    assert lineage.located(Path("a/runs/new"), parent) == tmp_path / "a/runs/old/model"
    Path("a").rename("b")
    assert lineage.located(Path("b/runs/new"), parent) == Path("b/runs/old/model")
    Path("b/runs/old/model/config.json").write_text("2")
    assert lineage.located(Path("b/runs/new"), parent) == Path("runs/old/model")  # not there: another by now


def test_folder_hash_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    def digest(files: dict[str, str], where: str) -> Any:
        for name, content in files.items():
            (tmp_path / where).mkdir(exist_ok=True)
            (tmp_path / where / name).write_text(content)
        return lineage.sha256_folder(tmp_path / where)

    first = digest({"a": "1", "b": "2"}, "one")
    assert digest({"b": "2", "a": "1", ".hidden": "x", "README.md": "card"}, "two") == first
    assert digest({"a": "2", "b": "1"}, "three") != first
