"""What inputs expand to, and what is wrong with those that don't."""

import gzip
from pathlib import Path

import pytest

from fledge.data.sources import describe, estimated_text_bytes, expand, total_size_bytes
from fledge.errors import DataError


def names(*inputs: str | Path) -> list[str]:
    return [Path(source.name).name for source in expand(list(inputs))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.md").write_text("c")
    (tmp_path / ".hidden.txt").write_text("h")
    (tmp_path / "weights.bin").write_bytes(b"\0\1")
    return tmp_path


def test_a_folder_gives_its_known_files_in_order(folder: Path) -> None:
    assert names(folder) == ["a.jsonl.gz", "b.txt", "c.md"]


@pytest.mark.parametrize("mark", ["lineage.json", "seeds.json"])
def test_runs_in_a_folder_are_no_data_unless_named(folder: Path, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "sub" / "run"
    (run / "seed-0").mkdir(parents=True)
    for name in ("config.yaml", mark, "samples.jsonl", "seed-0/summary.md"):
        (run / name).write_text("{}\n")
    assert names(folder) == ["a.jsonl.gz", "b.txt", "c.md"]
    assert f"{folder}: run folders in it are left out, the first is {run}; name one" in capsys.readouterr().err
    assert sorted(names(run)) == sorted([mark, "samples.jsonl", "summary.md"])


def test_folders_behind_links_are_read_and_loops_end(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "d.ndjson").write_text('{"text": "d"}\n')
    (elsewhere / "back").symlink_to(folder)
    (folder / "sub" / "linked").symlink_to(elsewhere)
    found = expand([folder])
    assert [Path(s.name).name for s in found] == ["a.jsonl.gz", "b.txt", "c.md", "d.ndjson"]
    assert found[-1].format == "jsonl"


def test_inputs_keep_their_order_and_a_file_stands_once(folder: Path) -> None:
    assert names(folder / "b.txt", folder, str(folder / "*.txt")) == ["b.txt", "a.jsonl.gz", "c.md"]


def test_globs_reach_into_folders(folder: Path) -> None:
    assert names(str(folder / "**" / "*.md")) == ["c.md"]


def test_formats_and_compressions_are_read_off_the_name(folder: Path) -> None:
    (source,) = expand([folder / "a.jsonl.gz"])
    assert (source.kind, source.format, source.compression) == ("file", "jsonl", "gzip")
    assert estimated_text_bytes(source) == 1400
    assert total_size_bytes([source]) == source.size_bytes < 1400


def test_hub_names_and_village_are_not_looked_up_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = expand(["owner/name", "owner/name:subset", "village:stories"])
    assert [source.kind for source in sources] == ["hub", "hub", "village"]
    assert estimated_text_bytes(sources[0]) is None
    assert total_size_bytes(sources) is None


def test_lineage_gets_a_hash_of_each_file(folder: Path) -> None:
    (entry,) = describe(expand([folder / "b.txt"]))
    assert entry["size_bytes"] == 1
    assert entry["sha256"].startswith("3e23e8160039594a")  # sha256sum of "b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bb.txt", r"bb\.txt: no such file or folder; did you mean .*b\.txt\?"),
        ("*.parquet", r"\*\.parquet: no file matches"),
        ("empty.txt", r"empty\.txt: empty file"),
        ("utf16.txt", r"utf16\.txt: UTF-16; convert it to UTF-8, for example with iconv"),
        ("weights.bin", r"weights\.bin: binary file, not text"),
        ("nothing", r"nothing: folder without data"),
        ("runs/tok", r"runs/tok: no such file"),
        ("/dev/null", r"/dev/null: a pipe or device, which can't be read twice; write it to a file first"),
    ],
)
def test_unusable_inputs_are_named(folder: Path, name: str, message: str) -> None:
    (folder / "empty.txt").touch()
    (folder / "utf16.txt").write_text("text", encoding="utf-16")
    (folder / "nothing").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        expand([folder / name])
    assert "\n" not in str(caught.value)


def test_an_unknown_village_is_named() -> None:
    with pytest.raises(DataError, match="no world 'atlantis'"):
        expand(["village:atlantis/stories"])


def test_no_input_is_an_error() -> None:
    with pytest.raises(DataError, match="no input given"):
        expand([])
