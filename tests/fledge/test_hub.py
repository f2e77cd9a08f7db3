"""What counts as a hub name."""

from pathlib import Path

import pytest

from fledge import hub


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "HuggingFaceFW/fineweb", "gpt2", "openai-community/gpt2"])
def test_hub_names_are_known(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.looks_like_hub_name(name)


@pytest.mark.parametrize(
    "name", ["./a/b", "/a/b", "runs/base", "a/b/c", "tok", "books/train.jsonl.gz", "../a", "a/b/", "mine/base", "~/a"]
)
def test_paths_are_no_hub_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert not hub.looks_like_hub_name(name)


def test_a_neighbour_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "input.txt").touch()
    assert hub.suggestion(tmp_path / "inptu.txt") == f"; did you mean {tmp_path / 'input.txt'}?"
    assert hub.suggestion(tmp_path / "zzz") == ""
