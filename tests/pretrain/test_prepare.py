"""`fledge pretrain prepare`, through the command line."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.__main__ import run
from fledge.config import load
from fledge.data.digests import DigestSet
from fledge.tokens import TextTokenizer
from pretrain.config import PrepareConfig
from tokenizer import shards

STORIES = [f"Once upon a time there was a fox named {n}.\nIt had {n * n} hats, caf\u00e9 \u4f60.\n" for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tok") / "tokenizer"
    tokenizer.save(folder)
    return folder.parent


def write_rows(path: Path, texts: list[str]) -> Path:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def prepare(*arguments: object) -> int:
    return run(["pretrain", "prepare", *map(str, arguments), "--json"])


def prepared(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The `--json` object of a run that must succeed."""
    code = prepare(*arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return dict(json.loads(captured.out.splitlines()[-1]))


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one-line error of a run that must fail."""
    assert prepare(*arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def documents(path: Path, split: shards.Split, tokenizer: TextTokenizer) -> list[str]:
    """The texts of a split, read back from its shards."""
    stream = shards.open_split(path, split)
    ids = stream.read(0, stream.num_tokens)
    assert ids[0] == ids[-1] == tokenizer.end_of_text_id
    ends = np.flatnonzero(ids == tokenizer.end_of_text_id)
    return [tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(ends)]


def same_shards(first: Path, second: Path) -> bool:
    names = sorted(p.name for p in (first / "shards").iterdir())
    return names == sorted(p.name for p in (second / "shards").iterdir()) and all(
        (first / "shards" / name).read_bytes() == (second / "shards" / name).read_bytes() for name in names
    )


def test_every_document_is_in_one_split_and_comes_back_exactly(
    tmp_path: Path, tokenizer: TextTokenizer, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in/a.jsonl.gz", STORIES)
    result = prepared(
        capsys, "--input", tmp_path / "in", "--tokenizer", tokenizer_folder, "--out", tmp_path / "run",
        "--validation-share", 0.1,
    )  # fmt: skip
    train, held_out = (documents(tmp_path / "run", split, tokenizer) for split in shards.SPLITS)
    assert [text for text in STORIES if text in set(train)] == train
    assert sorted(train + held_out) == sorted(STORIES)
    assert 10 < len(held_out) < 60
    index = shards.read_index(tmp_path / "run")
    assert result["documents"] == 300
    assert result["bytes"] == sum(len(text.encode()) for text in STORIES)
    assert result["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in STORIES) + 2
    assert result["rejected"] == 0
    assert index.tokenizer["fingerprint"] == tokenizer.fingerprint
    assert TextTokenizer.from_folder(index.folder).fingerprint == tokenizer.fingerprint
    assert index.facts["encoder"] == "tiktoken"


def test_validation_does_not_depend_on_how_much_was_downloaded(
    tmp_path: Path, tokenizer: TextTokenizer, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = {}
    for name, texts in {"all": STORIES, "part": STORIES[:150][::-1]}.items():
        write_rows(tmp_path / f"{name}.jsonl", texts)
        prepared(
            capsys, "--input", tmp_path / f"{name}.jsonl", "--tokenizer", tokenizer_folder,
            "--out", tmp_path / name, "--validation-share", 0.1,
        )  # fmt: skip
        held_out[name] = set(documents(tmp_path / name, "validation", tokenizer))
    assert held_out["part"] == held_out["all"] & set(STORIES[:150])


def test_a_text_file_is_split_in_pieces_and_says_so(
    tmp_path: Path, tokenizer: TextTokenizer, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(STORIES)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert prepare(
        "--input", tmp_path / "a.txt", "--tokenizer", tokenizer_folder, "--out", tmp_path / "run"
    ) == 0  # fmt: skip
    assert "split: fewer than 100 documents: they are cut at line ends into pieces" in capsys.readouterr().err
    pieces = [piece for split in shards.SPLITS for piece in documents(tmp_path / "run", split, tokenizer)]
    assert all(piece in text and piece.endswith("\n") for piece in pieces)
    assert sum(map(len, pieces)) == len(text)


def test_the_tail_of_a_file_can_be_held_out(
    tmp_path: Path, tokenizer: TextTokenizer, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(STORIES)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    prepared(
        capsys, "--input", tmp_path / "a.txt", "--tokenizer", tokenizer_folder, "--out", tmp_path / "run",
        "--validation-tail", 0.1,
    )  # fmt: skip
    cut = int(len(text) * 0.9)
    assert documents(tmp_path / "run", "train", tokenizer) == [text[:cut]]
    assert documents(tmp_path / "run", "validation", tokenizer) == [text[cut:]]


def test_validation_input_is_held_out_and_its_copies_leave_training(
    tmp_path: Path, tokenizer: TextTokenizer, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "train.jsonl", STORIES)
    write_rows(tmp_path / "valid.jsonl", STORIES[:7])
    result = prepared(
        capsys, "--input", tmp_path / "train.jsonl", "--validation-input", tmp_path / "valid.jsonl",
        "--tokenizer", tokenizer_folder, "--out", tmp_path / "run",
    )  # fmt: skip
    assert documents(tmp_path / "run", "validation", tokenizer) == STORIES[:7]
    assert documents(tmp_path / "run", "train", tokenizer) == STORIES[7:]
    assert result["rejected"] == 7


def test_rejects_are_kept_with_their_reasons(
    tmp_path: Path, tokenizer: TextTokenizer, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": text}).encode() for text in [*STORIES[:120], STORIES[5], " \n", "ok"]]
    lines += [b'{"text": "caf\xe9 au lait"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    result = prepared(
        capsys, "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer_folder, "--out", tmp_path / "run"
    )
    found = [json.loads(line) for line in (tmp_path / "run/shards/rejects.jsonl").read_text().splitlines()]
    assert [(row["position"], row["reason"]) for row in found] == [
        (121, "duplicate"),
        (122, "empty"),
        (123, "too short"),
        (124, "not UTF-8"),
    ]
    assert (result["rejected"], result["documents"]) == (4, 120)
    card = (tmp_path / "run/summary.md").read_text()
    assert "| duplicate" in card
    texts = documents(tmp_path / "run", "train", tokenizer)
    ratio = sum(len(text.encode()) for text in texts) / sum(len(tokenizer.encode(text)) for text in texts)
    (train,) = [line for line in card.splitlines() if line.startswith("| train")]
    assert train.split("|")[-2].strip() == f"{ratio:.3f}"  # as `tokenizer compare` has it: of text
    assert "split" in card
    assert "## Lengths" in card


@pytest.mark.parametrize("kind", ["word", "unigram"])
def test_tokenizers_that_tiktoken_lacks_give_their_own_ids(
    tmp_path: Path, kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizer.learn import learn

    other = TextTokenizer(learn(kind, iter(STORIES), 264))
    other.save(tmp_path / "tok")
    write_rows(tmp_path / "a.jsonl", STORIES)
    prepared(capsys, "--input", tmp_path / "a.jsonl", "--tokenizer", tmp_path / "tok", "--out", tmp_path / "run")
    index = shards.read_index(tmp_path / "run")
    assert index.facts["encoder"] == "tokenizers"
    stream = shards.open_split(tmp_path / "run", "train")
    train = documents(tmp_path / "run", "train", other)
    ids = [number for text in train for number in (*other.encode(text), 0)]
    assert stream.read(1, stream.num_tokens - 1).tolist() == ids


def test_special_tokens_in_a_corpus_are_plain_text(
    tmp_path: Path, tokenizer: TextTokenizer, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{text}<|endoftext|><|im_start|>" for text in STORIES]
    write_rows(tmp_path / "a.jsonl", texts)
    prepared(capsys, "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer_folder, "--out", tmp_path / "run")
    found = [text for split in shards.SPLITS for text in documents(tmp_path / "run", split, tokenizer)]
    assert sorted(found) == sorted(texts)


def test_derived_settings_are_frozen(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "a.jsonl", STORIES)
    prepared(capsys, "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer_folder, "--out", tmp_path / "run")
    frozen = load(PrepareConfig, tmp_path / "run/config.yaml")
    assert (frozen.split, frozen.encoder) == ("documents", "tiktoken")
    assert frozen.threads >= 1
    prepared(capsys, "--config", tmp_path / "run/config.yaml", "--out", tmp_path / "again")
    assert same_shards(tmp_path / "run", tmp_path / "again")


def slow_copy(tmp_path: Path, tokenizer_folder: Path, out: str) -> list[str]:
    return [
        "pretrain", "prepare", "--input", str(tmp_path / "big.jsonl"), "--tokenizer", str(tokenizer_folder),
        "--out", str(tmp_path / out), "--checkpoint-megabytes", "0.05", "--threads", "1",
    ]  # fmt: skip


def test_checkpoints_become_rarer_as_what_they_write_grows(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = DigestSet.save
    monkeypatch.setattr(DigestSet, "save", lambda seen, file: (saved.append(len(seen)), save(seen, file)))
    write_rows(tmp_path / "big.jsonl", [f"this is number {n}" for n in range(3000)])
    arguments = slow_copy(tmp_path, tokenizer_folder, "run")[:-4]
    assert run([*arguments, "--checkpoint-megabytes", "0.001"]) == 0  # 57 times that much text
    assert len(saved) > 2
    assert all(later > 4 * before for before, later in pairwise(saved))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing_half_written_and_continues(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], how: signal.Signals
) -> None:
    texts = ["", *(f"{n} {STORIES[n % 300] * 5}" for n in range(8000)), STORIES[0], STORIES[0], ""]
    write_rows(tmp_path / "big.jsonl", texts)
    with (tmp_path / "big.jsonl").open("a") as file:
        file.write('["half \\ud800"]\n"\\ud800"\n' * 30)  # 60 bad rows: 0.7 % of all, most of the last ones
    assert run(slow_copy(tmp_path, tokenizer_folder, "whole")) == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fledge", *slow_copy(tmp_path, tokenizer_folder, "cut")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not list((tmp_path / "cut/checkpoints").glob("step-*3")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(how)
    assert process.returncode == (130 if how == signal.SIGTERM else -signal.SIGKILL)
    assert not (tmp_path / "cut/shards").exists()
    assert run(["pretrain", "prepare", "--resume", str(tmp_path / "cut")]) == 0
    assert "continuing from step-" in capsys.readouterr().err
    assert same_shards(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "cut/checkpoints").exists()


def test_a_stop_in_the_middle_of_a_document_is_heeded_at_once(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "big.txt").write_text("\n".join(STORIES) * 60)
    command = [word.replace("big.jsonl", "big.txt") for word in slow_copy(tmp_path, tokenizer_folder, "cut")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "fledge", *command], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (tmp_path / "cut/.shards-unfinished").exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "stopped at step 0; continue with --resume" in said
    assert run(["pretrain", "prepare", "--resume", str(tmp_path / "cut")]) == 0
    assert shards.read_index(tmp_path / "cut").facts["documents"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits there")
def test_a_full_disk_is_said_and_continued_from(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    write_rows(tmp_path / "big.jsonl", [f"{n} {STORIES[n % 300]}" for n in range(3000)])
    assert run(slow_copy(tmp_path, tokenizer_folder, "whole")) == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        assert run(slow_copy(tmp_path, tokenizer_folder, "full")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no space left to write it; free some disk and continue with --resume" in capsys.readouterr().err
    assert run(["pretrain", "prepare", "--resume", str(tmp_path / "full")]) == 0
    assert "continuing from step-" in capsys.readouterr().err
    assert same_shards(tmp_path / "whole", tmp_path / "full")


def test_training_text_that_all_stands_in_validation_is_an_error(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "a.jsonl", STORIES[:4])
    line = failed(
        capsys, "--input", source, "--validation-input", source, "--tokenizer", tokenizer_folder,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert "no document is left in the train part (4 duplicate)" in line


def test_a_changed_input_is_not_continued(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain import sharding

    write_rows(tmp_path / "big.jsonl", STORIES * 3)

    def breaks_off(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sharding.Sharding, "_publish", breaks_off)
        arguments = slow_copy(tmp_path, tokenizer_folder, "cut")
        assert run([*arguments[:-4], "--checkpoint-megabytes", "0.01"]) == 130
    write_rows(tmp_path / "big.jsonl", STORIES)
    capsys.readouterr()
    assert run(["pretrain", "prepare", "--resume", str(tmp_path / "cut")]) == 1
    assert "its data changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"\0\1\2", "binary file, not text"),
        (b"   \n\n", "no document is left in the"),
        (b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_useless_files_are_errors(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("".join(STORIES[:5]))
    line = failed(
        capsys, "--input", tmp_path / "a.txt", "--validation-input", tmp_path / "a.txt",
        "--tokenizer", tokenizer_folder, "--out", tmp_path / "run",
    )  # fmt: skip
    assert message in line
    assert not (tmp_path / "run/shards").exists()


def test_two_ways_to_split_exclude_each_other(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed(
        capsys, "--input", "a", "--tokenizer", tokenizer_folder, "--validation-input", "b", "--validation-tail", 0.1
    )  # fmt: skip
    assert "exclude each other" in line


@pytest.mark.parametrize("split", ["pieces", "tail", "input"])
def test_a_split_that_only_a_run_can_set_is_an_error(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    line = failed(capsys, "--input", "a", "--tokenizer", tokenizer_folder, "--split", split)
    assert f"--split {split} is set by the run; leave it out" in line


def test_a_split_by_documents_keeps_validation_input_out_of_training(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed(
        capsys, "--input", "a", "--tokenizer", tokenizer_folder, "--validation-input", "b", "--split", "documents"
    )  # fmt: skip
    assert "--split documents is set by the run; leave it out" in line


def peak_megabytes(tmp_path: Path, tokenizer_folder: Path, source: Path, out: str) -> float:
    # Not getrusage: its peak begins with that of the process it was forked from.
    code = (
        "import re, sys; from pathlib import Path; from fledge.__main__ import run; assert run(sys.argv[1:]) == 0; "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    command = [
        sys.executable, "-c", code, "pretrain", "prepare", "--input", str(source),
        "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / out), "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, tokenizer_folder: Path, name: str) -> None:
    peaks = []
    for size in (1, 8):
        (tmp_path / str(size)).mkdir()
        texts = [f"{n} {STORIES[n % 300] * 120}" for n in range(size * 400)]
        if name.endswith("txt"):
            (tmp_path / str(size) / name).write_text("".join(texts), encoding="utf-8")
        else:
            write_rows(tmp_path / str(size) / name, texts)
        peaks.append(peak_megabytes(tmp_path, tokenizer_folder, tmp_path / str(size) / name, f"run-{size}"))
    # 3.6 MB of text against 29 MB; what is held are a few tasks of 1 MB and, for a .txt, parts of 1 MB.
    assert peaks[1] < peaks[0] + 50
