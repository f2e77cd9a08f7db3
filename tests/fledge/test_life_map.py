"""What `fledge` alone tells to type next."""

import importlib
import json
from pathlib import Path

import pytest

from fledge.__main__ import run
from fledge.life_map import NEXT, following


def make(folder: Path, command: str, parent: str, is_finished: bool = True) -> None:
    folder.mkdir(parents=True)
    parents = [{"kind": "model", "path": parent, "sha256": ""}]
    (folder / "lineage.json").write_text(json.dumps({"command": command, "parents": parents}))
    (folder / "config.yaml").write_text("")
    if is_finished:
        (folder / "result.json").write_text("{}")


def test_without_runs_it_is_the_demo(tmp_path: Path) -> None:
    assert following(tmp_path / "runs")[0].startswith("fledge demo")


def test_a_reward_model_leads_to_ppo_of_its_parent(tmp_path: Path) -> None:
    make(tmp_path / "rm", "rlhf reward", "runs/chat")
    assert following(tmp_path)[0].startswith(f"fledge rlhf ppo runs/chat --reward {tmp_path}/rm ")


def test_an_interrupted_run_is_to_be_continued(tmp_path: Path) -> None:
    make(tmp_path / "base", "pretrain train", "runs/shards", is_finished=False)
    assert following(tmp_path) == [f"fledge pretrain train --resume {tmp_path}/base"]


@pytest.mark.parametrize("command", NEXT)
def test_every_command_on_the_map_exists(command: str) -> None:
    for line in (f"fledge {command}", NEXT[command]):
        words = line.split()[1:3]
        words = ["finetune", "chat"] if words[0] == "chat" else words
        assert importlib.util.find_spec(f"{words[0]}.{words[1]}")


def test_fledge_alone_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert "pretrain train  -->  finetune instruct" in shown
    assert "fledge demo" in shown.split("Next:")[1]
