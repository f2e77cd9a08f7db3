"""Items of tasks in training text."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from eval import overlap
from eval.items import Generation, Item, LogLikelihood
from fledge.cli import cli
from fledge.data.rows import Row
from fledge.errors import ConfigError, DataError
from fledge.tokens import TextTokenizer
from tokenizer import shards

GOOD = [
    "The keeper of the old mill sold seven white geese to the new baker",
    "A quiet child from the hill drew two red boats beside the long river",
    "Nobody in the village had ever heard the miller sing before that cold night",
]


def item(*texts: str, where: int = 1) -> Item:
    """An item that asks how likely texts are."""
    requests = tuple(LogLikelihood("", text) for text in texts)
    return Item(Row("f", where, {}), requests, "f")


def shares(items: list[Item], stream: list[str], n: int) -> list[float | None]:
    """The share of each item's stretches in a stream."""
    return [one.share for one in overlap.judge(items, iter(stream), n)]


def test_stretches_are_counted_without_case_and_punctuation() -> None:
    # Twelve words, so six stretches of seven; the first three stand in the text.
    asked = item("one two three four five six seven eight nine ten eleven twelve")
    stream = ["zero, ONE two -- three: four five (six) seven Eight nine; but not ten eleven twelve"]
    assert shares([asked], stream, 7) == [3 / 6]


def test_stretches_across_pieces_are_found_but_not_across_documents() -> None:
    asked = item("one two three four five six seven")
    assert shares([asked], ["zero one two three ", "four five six seven"], 7) == [1.0]
    assert shares([asked], ["zero one two three \0 ", "four five six seven"], 7) == [0.0]


def test_short_items_are_looked_for_as_a_whole_and_the_shortest_not_at_all() -> None:
    items = [item("one two three four five six"), item("one two three four five"), item("a b c d e f g")]
    assert shares(items, ["zero one two three four five six"], 13) == [1.0, None, 0.0]


def test_any_of_an_items_texts_can_be_found() -> None:
    answer = "the answer has seven words in all"
    asked = Item(Row("f", 1, {"prompt": "what is it", "answer": answer}), (Generation("what is it"),), "f")
    assert shares([asked], [f"so {answer} indeed"], 7) == [1.0]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of minimal pairs on sentences of a dozen words."""
    rows = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"sentence_good": text, "sentence_bad": text[::-1]}) for text in GOOD]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(f"kind: minimal_pairs\ndata: [{rows}]\n", encoding="utf-8")
    return file


def invoke(*arguments: str) -> dict[str, Any]:
    """The `--json` object of a search."""
    done = CliRunner().invoke(cli, ["eval", "overlap", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.strip().split("\n")[-1]))


def write_text(folder: Path) -> str:
    file = folder / "train.txt"
    file.write_text(f"Once upon a time.\n{GOOD[1]}, and so on.\n", encoding="utf-8")
    return str(file)


def write_rows(folder: Path) -> str:
    file = folder / "train.jsonl.gz"
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": GOOD[1]}]}
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    return str(file)


@pytest.mark.parametrize("write", [write_text, write_rows])
def test_dirty_items_are_named(write: Any, task: Path, tmp_path: Path) -> None:
    found = invoke("--data", write(tmp_path), "--task", str(task))["results"]["mine"]
    assert (found["items"], found["dirty"]) == (3, 1)
    assert list(found["dirty_items"]) == [f"{tmp_path}/pairs.jsonl:2"]


def test_shards_are_read_as_text(task: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    tokenizer.save(folder)
    # A sentence cut by the end of a document is not there; a whole one is.
    texts = ["The keeper of the old mill sold ", "seven white geese to the new baker", GOOD[2]]
    with shards.writers_in(folder, tokenizer) as writers:
        for text in texts:
            writers["train"].append(np.array(tokenizer.encode(text)), len(text.encode()))
        shards.write_index(folder, tokenizer, writers, {"sources": []})
    found = invoke("--data", str(folder), "--task", str(task))["results"]["mine"]
    assert list(found["dirty_items"]) == [f"{tmp_path}/pairs.jsonl:3"]


def test_shards_are_read_across_the_pieces_they_come_in(
    task: Path, tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "_READ", 3)  # ids: pieces end within words
    test_shards_are_read_as_text(task, tmp_path, tokenizer)


def test_a_sentence_over_the_end_of_a_row_is_not_there(task: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    middle = GOOD[1].index("boats")
    file.write_text("".join(json.dumps({"text": half}) + "\n" for half in (GOOD[1][:middle], GOOD[1][middle:])))
    assert invoke("--data", str(file), "--task", str(task))["results"]["mine"]["dirty"] == 0


def test_the_dirty_share_is_of_those_that_can_be_judged(task: Path, tmp_path: Path) -> None:
    with (tmp_path / "pairs.jsonl").open("a") as rows:
        rows.write('{"sentence_good": "a b", "sentence_bad": "b a"}\n')
    found = invoke("--data", write_text(tmp_path), "--task", str(task))["results"]["mine"]
    assert (found["too_short"], found["dirty_share"]) == (1, pytest.approx(1 / 3))


def test_scores_are_told_for_clean_and_dirty_items_apart(task: Path, tmp_path: Path, model_folder: Path) -> None:
    text = write_text(tmp_path)
    found = invoke("--data", text, "--task", str(task), "--model", str(model_folder))["results"]["mine"]
    parts = found["metrics"]["accuracy"]
    assert (parts["clean"]["n"], parts["dirty"]["n"]) == (2, 1)


def test_the_training_text_is_not_kept(task: Path) -> None:
    from eval import harness

    items = harness.read_items(harness.find_task(str(task))[1], harness.find_kind("minimal_pairs", ""), None)
    alive = 0

    class Text(str):
        def __init__(self, *_: str) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[str]:
        for _ in range(100):
            assert alive <= 2
            yield Text("some words " * 1000)

    overlap.judge(items, stream(), 13)


def test_what_can_not_be_searched_is_an_error(task: Path, tmp_path: Path) -> None:
    from eval.config import OverlapConfig

    text = write_text(tmp_path)
    with pytest.raises(ConfigError, match="a task of kind memorisation has no items of its own to look for"):
        overlap.run(OverlapConfig(data=[text], task=["memorisation"]))
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"sentence_good": "a b", "sentence_bad": "b a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="all items are shorter than 6 words; none can be judged"):
        overlap.run(OverlapConfig(data=[text], task=[str(task)]))
