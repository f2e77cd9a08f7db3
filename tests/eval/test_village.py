"""Models of the village: their own text, what they know, and that other models are told so."""

import json
import shutil
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.baselines import NgramModel
from eval.harness import find_task
from eval.items import Ratio
from eval.subject import Subject
from eval.tasks import own_text
from eval.tasks.village_knowledge import _item
from fledge import lineage
from fledge.__main__ import run
from fledge.data.rows import read
from fledge.models.loaded import load
from fledge.tokens import TextTokenizer
from fledge.village import floors
from fledge.village.stories import HELD_OUT_START, stories
from fledge.village.world import make_world
from tokenizer import shards


@pytest.fixture(scope="module")
def village_run(
    make_model: Callable[..., Path], tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose model has seen the hamlet's stories, as its lineage says."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    make_model(folder / "model", tokenizer, context=640)
    data = tmp_path_factory.mktemp("data") / "shards"
    data.mkdir()
    world = make_world()
    with shards.writers_in(data, tokenizer) as writers:
        for split, first, count in (("train", 0, 20), ("validation", 1000, 3)):
            for text in stories(world, first, count):
                writers[split].append(np.array(tokenizer.encode(text)), len(text.encode()))
        shards.write_index(data, tokenizer, writers, {"sources": ["village:hamlet/stories"]})
    lineage = {"command": "pretrain train", "parents": [{"kind": "shards", "path": str(data), "sha256": "0"}]}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


@pytest.fixture(scope="module")
def found(village_run: Path) -> dict[str, Any]:
    """What the quick suite measures of it, by task."""
    assert run(["eval", "run", str(village_run), "--limit=4", "--device=cpu"]) == 0
    files = (village_run / "eval").glob("*.json")
    return {content["task"]: content for content in (json.loads(file.read_text()) for file in files)}


def surprisal(folder: Path, ids: list[int]) -> np.ndarray:
    """Nats of each id but the first, by the whole logits."""
    logits = load(folder, device="cpu").logits(ids[:-1])[0]
    return -logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def test_the_quick_suite_measures_a_village_model_into_its_run(found: dict[str, Any]) -> None:
    assert set(found) == {"own_text", "village_knowledge", "village_pairs"}


def test_own_text_is_the_validation_stream_without_document_ends(
    found: dict[str, Any], village_run: Path, tokenizer: TextTokenizer
) -> None:
    texts = list(stories(make_world(), 1000, 3))
    stream = [0, *(i for text in texts for i in (*tokenizer.encode(text), 0))]
    nats = 0.0
    for start in range(0, len(stream) - 1, 640):
        piece = stream[start : start + 641]
        nats += float(surprisal(village_run, piece)[np.array(piece[1:]) != 0].sum())
    metric = found["own_text"]["metrics"]["bits_per_byte"]
    assert metric["value"] == pytest.approx(nats / log(2) / sum(len(t.encode()) for t in texts), rel=1e-5)
    assert metric["baseline"] > 0
    assert "5-gram" in found["own_text"]["settings"]["baseline"]


def test_the_baseline_of_a_part_of_the_text_is_of_the_same_part(village_run: Path) -> None:
    subject, task = Subject.open(str(village_run), "cpu"), find_task("own_text")[1]
    part = own_text.measure(subject, task, 1)
    assert subject.shards is not None
    assert subject.ngrams is not None
    ids = shards.open_split(subject.shards, "validation").read(0, 641)
    nats = -float(subject.ngrams.logprobs(ids)[ids[1:] != 0].sum())
    num_bytes = len(subject.tokenizer.decode_bytes([i for i in ids.tolist() if i]))
    assert part.baselines["bits_per_byte"] == pytest.approx(nats / log(2) / num_bytes)


def test_pairs_have_the_better_of_chance_and_of_a_5_gram_model_as_baseline(
    found: dict[str, Any], village_run: Path, tokenizer: TextTokenizer
) -> None:
    result = found["village_pairs"]
    text = shards.open_split(lineage.read(village_run)["parents"][0]["path"], "train")
    model = NgramModel(text.read(0, len(text)), tokenizer.vocab_size)
    rows = {row.where: row.values for row in read(result["settings"]["data"]).rows}
    wins = []
    for where in result["items"]["where"]:
        sentences = (rows[where][name] for name in ("sentence_good", "sentence_bad"))
        good, bad = (model.logprobs(np.array([0, *tokenizer.encode(f" {sentence}")])).sum() for sentence in sentences)
        wins.append(0.5 if good == pytest.approx(bad, abs=1e-5) else float(good > bad))
    ngram = result["settings"]["ngram"]
    assert ngram["model"].startswith("5-gram")
    assert ngram["accuracy"] == pytest.approx(np.mean(wins))
    assert result["metrics"]["accuracy"]["baseline"] == max(0.5, ngram["accuracy"])


def test_knowledge_is_measured_on_held_out_stories_between_their_floors(
    found: dict[str, Any], village_run: Path, tokenizer: TextTokenizer
) -> None:
    world = make_world()
    texts = list(stories(world, HELD_OUT_START, 4))
    bits = sum(float(surprisal(village_run, [0, *tokenizer.encode(t)]).sum()) for t in texts) / log(2)
    levels = floors.floors(world, texts)
    metrics = found["village_knowledge"]["metrics"]
    assert metrics["bits_per_byte"]["value"] == pytest.approx(bits / levels.num_bytes, rel=1e-5)
    assert metrics["known_share"]["value"] == pytest.approx(levels.known_share(bits / levels.num_bytes), rel=1e-4)
    assert metrics["bits_per_byte"]["baseline"] == pytest.approx(levels.grammar_bits_per_byte)
    assert metrics["bits_per_byte"]["ceiling"] == pytest.approx(levels.world_bits_per_byte)


def test_who_knows_every_fact_has_all_of_its_bits() -> None:
    world = make_world()
    (text,) = stories(world, HELD_OUT_START, 1)
    offsets = [(i, i + 1) for i in range(len(text))]
    share = _item(world, text, offsets, np.zeros(len(text)), "story").values["facts_known"]
    assert isinstance(share, Ratio)
    assert share.part == share.whole > 0


def test_the_runs_of_a_moved_folder_find_each_other(village_run: Path, tmp_path: Path) -> None:
    data = Path(lineage.read(village_run)["parents"][0]["path"])
    shutil.copytree(village_run, tmp_path / "base")
    shutil.copytree(data, tmp_path / "data" / "shards")
    record = {"kind": "shards", "path": "runs/data/shards", "run": "runs/data"}
    for sha256, place in ((lineage.sha256_folder(data), tmp_path / "data" / "shards"), ("other", None)):
        parents = {"command": "pretrain train", "parents": [record | {"sha256": sha256}]}
        (tmp_path / "base" / "lineage.json").write_text(json.dumps(parents))
        assert Subject.open(str(tmp_path / "base"), "cpu").shards == place


def test_a_result_is_measured_again_when_the_models_text_was_changed(
    village_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Path(lineage.read(village_run)["parents"][0]["path"]) / shards.INDEX
    content = index.read_text()
    arguments = ["--task=own_text", "--limit=2", f"--out={tmp_path}", "--device=cpu"]
    try:
        for now, is_known in ((content, False), (content, True), (content + "\n", False)):
            index.write_text(now)
            assert run(["eval", "run", str(village_run), *arguments]) == 0
            assert ("measured before" in capsys.readouterr().err) == is_known
    finally:
        index.write_text(content)


def test_a_suites_folder_leaves_tasks_that_need_none_alone(
    village_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Path(lineage.read(village_run)["parents"][0]["path"]) / shards.INDEX
    content = index.read_text()
    index.write_text(content.replace("village:hamlet/stories", "books.txt"))  # of no village
    arguments = ["--suite=base", f"--data={tmp_path}", "--limit=2", f"--out={tmp_path}/out"]
    try:
        assert run(["eval", "run", str(village_run), *arguments, "--device=cpu", "--json"]) == 0
    finally:
        index.write_text(content)
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])["results"]) == ["own_text"]


def test_a_model_worse_than_its_baseline_is_flagged(village_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "run", str(village_run), "--task=village_knowledge", "--limit=4", "--device=cpu"]) == 0
    assert "village_knowledge: bits_per_byte" in capsys.readouterr().err


def test_a_model_without_a_village_is_told_so(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Subject.open(str(model_folder), "cpu").village is None
    assert run(["eval", "run", str(model_folder), "--task=village_knowledge", "--device=cpu"]) == 1
    assert "the model was not trained on the stories of one village" in capsys.readouterr().err
