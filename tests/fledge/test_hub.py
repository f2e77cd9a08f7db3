"""What counts as a hub name; what is fetched for one, at which commit, and what is said where the hub refuses."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from fledge import hub, lineage
from fledge.errors import DataError, ModelError

if TYPE_CHECKING:
    from conftest import Hub

MODEL = {"config.json": b"{}", "model.safetensors": b"w", "tokenizer.json": b"t", "README.md": b"r"}


def fetched(name: str = "owner/name", kind: Literal["model", "tokenizer"] = "model") -> Path:
    return hub.folder(name, kind, "model")


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


def test_only_what_is_read_is_fetched(hub_server: "Hub") -> None:
    twins = ("consolidated.safetensors", "onnx/a.json", "checkpoint-1/model.safetensors", "a/b/c.json", "pytorch.bin")
    hub_server.put("owner/name", MODEL | dict.fromkeys(twins, b"x") | {"model/config.json": b"inner"})
    fetched(kind="tokenizer")
    assert hub_server.downloads("owner/name") == ["tokenizer.json"]
    fetched()
    wanted = ["config.json", "model.safetensors", "model/config.json", "tokenizer.json"]
    assert hub_server.downloads("owner/name") == wanted


def test_a_process_stays_at_the_commit_that_it_found_first(hub_server: "Hub") -> None:
    commit = hub_server.put("owner/name", MODEL)
    assert fetched(kind="tokenizer").name == commit
    hub_server.put("owner/name", MODEL | {"config.json": b"[]"})
    assert (fetched() / "config.json").read_bytes() == b"{}"


def test_within_a_lineage_names_stand_for_its_commits(hub_server: "Hub") -> None:
    old = [hub_server.put("owner/name", MODEL), hub_server.put("owner/rows", {"a.jsonl": b"1"}, "datasets")]
    parents, data = [lineage.parent(fetched(), "model")], {"sources": [{"source": "owner/rows:a", "commit": old[1]}]}
    hub._known.clear()
    new = [hub_server.put("owner/name", {"config.json": b"2"}), hub_server.put("owner/rows", {}, "datasets")]
    with hub.as_recorded({"parents": parents, "data": data}):
        assert [fetched().name, hub.facts("owner/rows", "dataset")["commit"]] == old
    assert [fetched().name, hub.facts("owner/rows", "dataset")["commit"]] == new


def test_a_parent_of_the_hub_is_recorded_by_name_commit_and_what_is_read(
    hub_server: "Hub", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    commit = hub_server.put("owner/name", MODEL | {"LICENSE": b"free"}, cardData={"license": "mit"})
    record = lineage.parent(fetched(), "model")
    assert list(record.values())[:4] == ["model", "owner/name", commit, "mit"]
    hf_hub_download("owner/name", "LICENSE")
    assert lineage.parent(fetched(), "model") == record
    assert lineage.located(tmp_path, record) == fetched()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert lineage.located(tmp_path, record) == Path("owner/name")
    assert lineage.parent(fetched(), "model") == record


def test_a_tokenizer_stays_the_same_when_its_model_is_fetched(hub_server: "Hub") -> None:
    hub_server.put("owner/name", MODEL)
    record = lineage.parent(fetched(kind="tokenizer"), "tokenizer")
    assert lineage.parent(fetched(), "tokenizer") == record


def test_a_folder_that_no_hub_gave_is_hashed_whole(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    before = lineage.sha256_folder(tmp_path)
    (tmp_path / "onnx" / "notes.md").write_text("more")
    assert lineage.sha256_folder(tmp_path) != before


def test_the_name_is_told_and_a_hub_that_is_silent_is_not_waited_for(
    hub_server: "Hub", capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub_server.put("owner/name", MODEL)
    monkeypatch.setattr(hub, "_TIMEOUT_S", 0.2)
    hub_server.is_silent.set()
    with pytest.raises(
        ModelError, match=r"owner/name: .* can't give it \(.*timed out.*\); check the name and the conn"
    ):
        fetched()
    assert "owner/name: no folder here, so looked up on the hub" in capsys.readouterr().err
    hub_server.is_silent.clear()
    fetched()
    hub._known.clear()
    hub_server.is_silent.set()
    assert fetched().name == commit
    assert f"Its copy in the cache is used, commit {commit}" in capsys.readouterr().err


def test_the_users_own_wish_to_stay_offline_stands(hub_server: "Hub", monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub_server.put("owner/name", MODEL)
    fetched()
    hub._known.clear()
    asked = len(hub_server.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetched().name == commit
    with pytest.raises(DataError, match="HF_HUB_OFFLINE forbids to ask the hub; unset it"):
        hub.facts("owner/rows", "dataset")
    assert len(hub_server.asked) == asked


def test_a_gated_and_an_unknown_repository_are_named_so(hub_server: "Hub") -> None:
    hub_server.put("owner/name", MODEL, gated="manual")
    with pytest.raises(ModelError, match="owner/name: gated; ask for access on its page of the hub, then set HF_TOKEN"):
        fetched()
    with pytest.raises(ModelError, match=r"owner/other: .* knows none that you may read; check the name, and HF_TOKEN"):
        fetched("owner/other")


def test_a_commit_that_is_gone_is_told_so(hub_server: "Hub") -> None:
    hub_server.put("owner/name", MODEL)
    began = {"kind": "model", "path": "owner/name", "commit": "0" * 40}
    with hub.as_recorded([began]), pytest.raises(ModelError, match="the commit with which the run began is gone from"):
        fetched()


def test_a_full_disk_is_told_with_its_folder(hub_server: "Hub", monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub_server.put("owner/name", MODEL)
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(ModelError, match=r"no space left for owner/name; make room, or set HF_HOME"):
        fetched()
