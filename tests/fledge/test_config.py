"""Configs: merging, checks, and errors that name file and line."""

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from fledge import config
from fledge.config import CommandConfig, Config
from fledge.errors import ConfigError


class Schedule(Config):
    warmup_steps: int = Field(200, ge=0, description="steps until the peak")
    floor: float = Field(0.1, ge=0, le=1, description="last share")
    peak: float | None = Field(None, description="highest")


class Command(CommandConfig):
    """A command."""

    stage: ClassVar[str] = "stage"
    command: ClassVar[str] = "command"
    data: str = Field(description="where")
    names: list[str] = Field([], description="several")
    schedule: Schedule = Schedule()


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    return file


def test_options_beat_yaml_and_yaml_beats_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "data: a\nschedule:\n  warmup_steps: 7\n  floor: 0.2\n")
    loaded = config.load(Command, file, {("schedule", "floor"): "0.3"})
    assert loaded == Command(data="a", schedule=Schedule(warmup_steps=7, floor=0.3))


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    original = Command(data="a: b #c", names=["x", "1e-4"], schedule=Schedule(floor=1e-5))
    assert config.load(Command, write(tmp_path, config.dump(original))) == original


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    assert config.load(Command, write(tmp_path, "data: a\nschedule: {floor: 1e-4}\n")).schedule.floor == 1e-4


def test_unknown_key_names_file_line_group_and_neighbour(tmp_path: Path) -> None:
    file = write(tmp_path, "data: a\nschedule:\n  warmup_step: 7\n")
    with pytest.raises(ConfigError) as caught:
        config.load(Command, file)
    expected = f"{file}:3: unknown key 'warmup_step' in 'schedule'; did you mean 'warmup_steps'?"
    assert str(caught.value) == expected


def test_a_replaced_value_that_can_not_be_is_named_by_its_flag() -> None:
    whole = Command(data="a")
    assert config.with_values(whole, {"schedule.floor": 0.5}) == Command(data="a", schedule=Schedule(floor=0.5))
    with pytest.raises(ConfigError, match=r"^--schedule\.floor: input should be less than or equal to 1 \(got 2\)$"):
        config.with_values(whole, {"schedule.floor": 2})


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, "schedule:\n  warmup_steps: -1\n  floor: x\nnonsense: 1\n")
    with pytest.raises(ConfigError) as caught:
        config.load(Command, file, {("names",): ["ok"]})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "--data is required" in lines
    assert f"{file}:2: 'schedule.warmup_steps' input should be greater than or equal to 0 (got -1)" in lines
    assert any(line.startswith(f"{file}:4: unknown key 'nonsense'; known: data, names") for line in lines)


def test_a_wrong_option_is_named_by_its_flag() -> None:
    with pytest.raises(ConfigError, match=r"^--schedule\.warmup-steps: input should be a valid integer"):
        config.load(Command, None, {("data",): "a", ("schedule", "warmup_steps"): "many"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", ":2: not valid YAML"),
        ("- 1\n", ":1: expected 'key: value' lines"),
        ("data: a\ndata: b\n", ":2: key 'data' stands twice"),
    ],
)
def test_broken_yaml_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.load(Command, file)
    assert str(caught.value).startswith(f"{file}{message}")


def test_a_group_without_settings_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("# empty\nschedule:\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2: 'schedule' is a group; put its settings below it"):
        config.load(Command, file, {("schedule", "warmup_steps"): 1})


def test_an_empty_group_names_the_line(tmp_path: Path) -> None:
    message = r"my\.yaml:2: 'schedule' is a group; put its settings below it, or leave it out \(got None\)"
    with pytest.raises(ConfigError, match=message):
        config.load(Command, write(tmp_path, "data: a\nschedule:\n"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("warmup_steps: on", "'schedule.warmup_steps' input should be a number, not yes or no (got True)"),
        ("floor: no", "'schedule.floor' input should be a number, not yes or no (got False)"),
        ("peak: yes", "'schedule.peak' input should be a number, not yes or no (got True)"),
        ("peak: .inf", "'schedule.peak' input should be a finite number (got inf)"),
    ],
)
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, setting: str, message: str) -> None:
    file = write(tmp_path, f"data: a\nschedule:\n  {setting}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(Command, file)
    assert str(caught.value) == f"{file}:3: {message}"


@pytest.mark.parametrize("value", ["!!python/name:os.system", "!!int x", "2020-99-99"])
def test_a_value_that_is_no_value_is_an_error(tmp_path: Path, value: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"data: {value}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml.*: not a plain value"):
        config.load(Command, file)


def test_unknown_shipped_config_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="--config big: 'fledge stage command' ships no such config"):
        config.resolve_config_path(Command, "big")


def test_missing_config_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^none/my\.yaml: no such config file"):
        config.resolve_config_path(Command, "none/my.yaml")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("3m", 180), ("1h30m", 5400), ("1.5m", 90)])
def test_durations(text: str, seconds: float) -> None:
    assert config.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-3m", "m", "3 days", "nan"])
def test_nonsense_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration; write 90s, 3m or 1h30m"):
        config.parse_duration(text)
