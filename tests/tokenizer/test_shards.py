"""Token shards: what is written is what is read, and damage is seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import DataError
from fledge.tokens import TextTokenizer
from tokenizer import shards
from tokenizer.shards import ShardWriter, TokenStream


def write(folder: Path, tokenizer: TextTokenizer, documents: list[list[int]], shard_tokens: int = 7) -> list[int]:
    """Write documents to the train split, and two to validation; gives the train stream as it should be."""
    folder.mkdir(exist_ok=True)
    writers = {split: ShardWriter(folder, split, tokenizer, shard_tokens) for split in shards.SPLITS}
    for ids in documents:
        writers["train"].append(np.array(ids), 2 * len(ids))
    writers["validation"].append(np.array([9, 8]), 3)
    shards.write_index(folder, tokenizer, writers, {"sources": ["a.txt"], "rejects": {}})
    end = tokenizer.end_of_text_id
    return [end, *(number for ids in documents for number in (*ids, end))] if documents else []


DOCUMENTS = [[5, 6, 7], [8], [], list(range(20, 40))]


def test_a_stream_is_end_then_documents_each_with_end(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    expected = write(tmp_path, small_tokenizer, DOCUMENTS)
    stream = shards.open_split(tmp_path, "train")
    assert stream.read(0, stream.num_tokens).tolist() == expected
    assert (stream.num_tokens, stream.num_bytes) == (len(expected), 48)
    assert shards.read_index(tmp_path).splits["train"].num_documents == 4
    assert len(list(tmp_path.glob("train-*.bin"))) == 5
    assert np.concatenate(list(stream.blocks(6))).tolist() == expected


def test_any_window_reads_across_shards(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    expected = write(tmp_path, small_tokenizer, DOCUMENTS)
    stream = shards.open_split(tmp_path, "train")

    @given(st.integers(0, len(expected)), st.integers(0, len(expected)))
    def check(start: int, count: int) -> None:
        if start + count > len(expected):
            with pytest.raises(DataError, match="the split has"):
                stream.read(start, count)
        else:
            assert stream.read(start, count).tolist() == expected[start : start + count]
            assert stream.read(start, count).dtype == np.int64

    check()


def test_a_run_folder_is_as_good_as_its_shards(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    write(tmp_path / "shards", small_tokenizer, DOCUMENTS)
    assert shards.find_folder(tmp_path) == tmp_path / "shards"
    assert isinstance(shards.open_split(tmp_path, "validation"), TokenStream)


def test_large_vocabularies_take_four_bytes() -> None:
    assert shards.dtype_for(1 << 16).itemsize == 2
    assert shards.dtype_for((1 << 16) + 1).itemsize == 4


def test_parts_make_one_document(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    writer = ShardWriter(tmp_path, "train", small_tokenizer)
    writer.append(np.array([5, 6]), 2, ends_document=False)
    writer.append(np.array([7]), 1)
    writer.close()
    assert np.fromfile(tmp_path / "train-00000.bin", dtype="<u2").tolist() == [0, 5, 6, 7, 0]
    assert writer.num_documents == 1


@pytest.mark.parametrize("kept", range(5))
def test_a_restored_writer_goes_on_as_if_never_stopped(
    tmp_path: Path, small_tokenizer: TextTokenizer, kept: int
) -> None:
    expected = write(tmp_path / "whole", small_tokenizer, DOCUMENTS)
    folder = tmp_path / "resumed"
    folder.mkdir()
    first = ShardWriter(folder, "train", small_tokenizer, 7)
    for ids in DOCUMENTS[:kept]:
        first.append(np.array(ids), 2 * len(ids))
    state = json.loads(json.dumps(first.state()))
    first.append(np.arange(30, 60), 60)  # lost: written after the state was taken
    first.close()
    second = ShardWriter(folder, "train", small_tokenizer, 7)
    second.restore(state)
    for ids in DOCUMENTS[kept:]:
        second.append(np.array(ids), 2 * len(ids))
    second.close()
    files = sorted(folder.glob("*.bin"))
    assert np.concatenate([np.fromfile(file, dtype="<u2") for file in files]).tolist() == expected
    assert [file.read_bytes() for file in files] == [(tmp_path / "whole" / file.name).read_bytes() for file in files]


def test_shards_that_lost_bytes_are_not_restored(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    writer = ShardWriter(tmp_path, "train", small_tokenizer)
    writer.append(np.arange(10), 10)
    state = writer.state()
    writer.close()
    (tmp_path / "train-00000.bin").write_bytes(b"12")
    with pytest.raises(DataError, match=r"train-00000\.bin: cut short"):
        ShardWriter(tmp_path, "train", small_tokenizer).restore(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"train-00001\.bin: cut short \(10 bytes, expected 14\); copy it again"),
        ("longer", r"train-00001\.bin: too long \(16 bytes, expected 14\)"),
        ("gone", r"train-00001\.bin: shard is missing"),
        ("index", r"index\.json: damaged"),
        ("no index", r"no finished token shards \(no index\.json\)"),
        ("version", r"index\.json: version 99, this fledge reads 1"),
    ],
)
def test_damage_is_named(tmp_path: Path, small_tokenizer: TextTokenizer, damage: str, message: str) -> None:
    write(tmp_path, small_tokenizer, DOCUMENTS)
    shard, index = tmp_path / "train-00001.bin", tmp_path / "index.json"
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[:10])
    elif damage == "longer":
        shard.write_bytes(content + b"xx")
    elif damage == "gone":
        shard.unlink()
    elif damage == "index":
        index.write_text('{"version": 1')
    elif damage == "version":
        index.write_text(index.read_text().replace('"version": 1', '"version": 99'))
    else:
        index.unlink()
    with pytest.raises(DataError, match=message):
        shards.open_split(tmp_path, "train")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; prepare shards"):
        shards.find_folder(tmp_path / "nope")


def test_an_empty_split_is_an_error(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    write(tmp_path, small_tokenizer, [])
    with pytest.raises(DataError, match="no text in the train split"):
        shards.open_split(tmp_path, "train")


def test_another_tokenizer_is_refused(tmp_path: Path, small_tokenizer: TextTokenizer, corpus: list[str]) -> None:
    from tokenizer.learn import learn

    write(tmp_path, small_tokenizer, DOCUMENTS)
    shards.check_tokenizer(tmp_path, small_tokenizer)
    other = TextTokenizer(learn("bpe", iter(corpus), 300))
    with pytest.raises(DataError, match=r"made with another tokenizer \(vocabulary 400, expected 300\)"):
        shards.check_tokenizer(tmp_path, other)
