"""Carrying out commands one after the other."""

import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fledge import commands
from fledge.config import CommandConfig, RunConfig
from fledge.errors import Interrupted, RunError
from fledge.rundir import RunFolder


class Command(CommandConfig):
    """A command."""

    stage: ClassVar[str] = "a_stage"
    command: ClassVar[str] = "a_command"
    run: RunConfig = RunConfig()


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the command's runs; the first of them is asked to stop in its last step."""
    seeds: list[int] = []

    def run(settings: Command, folder: RunFolder) -> dict[str, Any]:
        seeds.append(settings.run.seed)
        with folder.stopping_politely():
            if len(seeds) == 1:
                signal.raise_signal(signal.SIGTERM)
        return {"number": len(seeds)}

    offer(monkeypatch, run)
    return seeds


def offer(monkeypatch: pytest.MonkeyPatch, run: Callable[[Command, RunFolder], dict[str, Any]]) -> None:
    """Let a function be what the command does."""
    module = types.ModuleType("a_stage.a_command")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_stage", types.ModuleType("a_stage"))
    monkeypatch.setitem(sys.modules, "a_stage.a_command", module)


def test_ctrl_c_outside_of_a_loop_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(settings: Command, folder: RunFolder) -> dict[str, Any]:
        raise KeyboardInterrupt

    offer(monkeypatch, interrupted)
    with pytest.raises(Interrupted, match=r"interrupted; continue with --resume .*/r$"):
        commands.execute(Command(), tmp_path / "r")


def test_a_stop_in_the_last_step_is_heeded_and_loses_nothing(
    done: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted, match=r"stopped; .*/r was finished already"):
        commands.execute(Command(), tmp_path / "r")
    assert commands.resume(Command, tmp_path / "r", None, {})["number"] == 1
    assert capsys.readouterr().err.endswith("finished already; nothing to do\n")  # this one has no more steps to make
    assert done == [0]


def test_the_run_of_another_command_is_not_resumed(done: list[int], tmp_path: Path) -> None:
    class Other(Command):
        """Another command."""

        command: ClassVar[str] = "another"

    done.append(9)  # no stop
    commands.execute(Command(), tmp_path / "r")
    with pytest.raises(RunError, match="a run of 'fledge a_stage a_command', not of 'fledge a_stage another'"):
        commands.resume(Other, tmp_path / "r", None, {})


@pytest.mark.parametrize("content", ["[1]", '{"steps": '])
def test_a_damaged_result_is_named(done: list[int], content: str, tmp_path: Path) -> None:
    done.append(9)  # no stop
    commands.execute(Command(), tmp_path / "r")
    (tmp_path / "r/result.json").write_text(content)
    with pytest.raises(RunError, match=r"r/result.json: can't be read .*; delete it to finish the run again"):
        commands.resume(Command, tmp_path / "r", None, {})
    (tmp_path / "r/result.json").unlink()
    assert commands.resume(Command, tmp_path / "r", None, {})["number"] == 3


def test_a_run_goes_on_though_what_was_typed_is_lost(done: list[int], tmp_path: Path) -> None:
    done.append(9)  # no stop
    commands.execute(Command(), tmp_path / "r")
    (tmp_path / "r/lineage.json").write_text('{"command": "a_stage a_command"}')
    (tmp_path / "r/result.json").unlink()
    assert commands.resume(Command, tmp_path / "r", None, {})["number"] == 3


def test_no_seed_is_begun_after_a_stop(done: list[int], tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped in seed 0; continue with --resume"):
        commands.execute_seeds(Command(), [0, 1], tmp_path / "r", {})
    assert done == [0]
    found = commands.resume(Command, tmp_path / "r", None, {})
    assert found["results"]["number"]["values"] == [1, 2]
    assert done == [0, 1]


def test_the_time_of_a_run_is_that_of_all_its_sittings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sittings: list[float] = []

    def run(settings: Command, folder: RunFolder) -> dict[str, Any]:
        begun = time.process_time()
        while time.process_time() < begun + 0.05:  # busy, as the time of a CPU is counted
            pass
        sittings.append(begun)
        if len(sittings) < 3:
            raise folder.interrupted(len(sittings))
        return {}

    offer(monkeypatch, run)
    with pytest.raises(Interrupted):
        commands.execute(Command(), tmp_path / "r")
    with pytest.raises(Interrupted):
        commands.resume(Command, tmp_path / "r", None, {})
    result = commands.resume(Command, tmp_path / "r", None, {})
    assert min(result["cpu_s"], result["elapsed_s"]) > 0.149


def test_the_deviation_of_one_seed_is_not_known(done: list[int], tmp_path: Path) -> None:
    done.append(9)  # no stop
    found = commands.execute_seeds(Command(), [0], tmp_path / "r", {})
    assert found["results"]["number"] == {"mean": 2, "deviation": None, "values": [2]}
    (line,) = [row for row in (tmp_path / "r" / "summary.md").read_text().splitlines() if row.startswith("| number")]
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["2", "-"]
