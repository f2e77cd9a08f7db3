"""What a model recites of its training text."""

from pathlib import Path

import numpy as np
import pytest

from eval import harness
from eval.config import TaskConfig
from eval.harness import DoesNotApply
from eval.subject import Subject
from eval.tasks.memorisation import _beginnings, longest_runs
from fledge.errors import DataError
from fledge.village.stories import stories
from fledge.village.world import make_world
from tokenizer import shards


def write_shards(folder: Path, subject: Subject, texts: dict[str, list[str]]) -> Path:
    """Token shards of some texts."""
    folder.mkdir()
    subject.tokenizer.save(folder)
    with shards.writers_in(folder, subject.tokenizer) as writers:
        for split in shards.SPLITS:
            for text in texts[split]:
                writers[split].append(np.array(subject.tokenizer.encode(text)), len(text.encode()))
        shards.write_index(folder, subject.tokenizer, writers, {"sources": []})
    return folder


def test_the_longest_run_is_found_as_by_comparing_everything(subject: Subject, tmp_path: Path) -> None:
    texts = list(stories(make_world(), 0, 30))
    folder = write_shards(tmp_path / "shards", subject, {"train": texts, "validation": []})
    stream = shards.open_split(folder, "train")
    everything = stream.read(0, len(stream)).tolist()
    sequences = [np.array(subject.tokenizer.encode(text))[:60] for text in stories(make_world(), 500, 5)]
    sequences += [np.array(everything[50:110]), np.array([], dtype=np.int64)]

    def slowly(ids: list[int]) -> int:
        text = " " + " ".join(map(str, everything)) + " "
        runs = [
            end - start
            for start in range(len(ids))
            for end in range(start + 1, len(ids) + 1)
            if " " + " ".join(map(str, ids[start:end])) + " " in text
        ]
        return max(runs, default=0)

    assert longest_runs(sequences, stream) == [slowly(sequence.tolist()) for sequence in sequences]


def test_recitation_is_measured_beside_what_real_text_shares(subject: Subject, tmp_path: Path) -> None:
    world = make_world()
    texts = {"train": list(stories(world, 0, 20)), "validation": list(stories(world, 900, 10))}
    folder = write_shards(tmp_path / "shards", subject, texts)
    task = TaskConfig(kind="memorisation", data=[str(folder)], max_new_tokens=16)
    result = harness.measure(subject, task, limit=5)
    run = result["metrics"]["longest_run"]
    assert run["n"] == 5
    assert 0 <= run["value"] < run["baseline"] <= 16  # a random model recites less than real text
    most = result["metrics"]["longest_run_of_all"]
    assert most["value"] == max(result["items"]["values"]["longest_run"])
    assert (most["low"], most["high"], most["detectable"]) == (None, None, None)  # others might recite more


def test_documents_as_long_as_books_are_found(subject: Subject, tmp_path: Path) -> None:
    book = "Anna has a dog. " * 30_000
    folder = write_shards(tmp_path / "shards", subject, {"train": [book, "short", book], "validation": []})
    stream = shards.open_split(folder, "train")
    ends = np.flatnonzero(stream.read(0, len(stream)) == stream.end_of_text_id)
    assert _beginnings(stream, 50) == [1, ends[2] + 1]


def test_without_its_shards_a_model_can_not_be_measured(subject: Subject) -> None:
    with pytest.raises(DoesNotApply, match="token shards it was trained on are not here; give them with --data"):
        harness.measure(subject, TaskConfig(kind="memorisation"))


def test_shards_of_another_tokenizer_are_refused(subject: Subject, tmp_path: Path) -> None:
    from itertools import islice

    from fledge.tokens import TextTokenizer
    from tokenizer.learn import learn

    other = TextTokenizer(learn("bpe", islice(stories(make_world()), 50), 280))
    folder = tmp_path / "shards"
    folder.mkdir()
    other.save(folder)
    with shards.writers_in(folder, other) as writers:
        writers["train"].append(np.array(other.encode("abc")), 3)
        shards.write_index(folder, other, writers, {})
    with pytest.raises(DataError, match="made with another tokenizer"):
        harness.measure(subject, TaskConfig(kind="memorisation", data=[str(folder)]))
