"""`fledge pretrain train`, through the command line."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge import checkpoints
from fledge.__main__ import run
from fledge.metrics_log import read_metrics, whole_lines
from fledge.models import folder
from fledge.tokens import TextTokenizer, default_chat_template
from tokenizer import shards
from tokenizer.learn import learn

TINY = [
    "--model.context=32",
    "--model.layers=2",
    "--model.width=32",
    "--model.heads=2",
    "--batch.sequences=4",
    "--run.max-steps=12",
    "--run.checkpoint-every=4",
    "--run.log-every=2",
    "--run.threads=1",
    "--run.dtype=float32",
    "--optim.learning-rate=0.003",
    "--validation.every=4",
    "--validation.sequences=4",
    "--samples.every=6",
    "--samples.max-new-tokens=4",
]


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", "train", "--data", str(data), "--out", str(out), *TINY, *more]


def weights(path: Path) -> bytes:
    return (path / "model" / "model.safetensors").read_bytes()


def train(data: Path, out: Path, *more: str) -> Path:
    assert run(arguments(data, out, *more)) == 0
    return out


@pytest.fixture(scope="session")
def trained(story_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps."""
    return train(story_shards, tmp_path_factory.mktemp("runs") / "base")


def test_a_run_leaves_everything_it_promises(trained: Path) -> None:
    names = {p.name for p in trained.iterdir() if not p.name.startswith(".")}
    expected = "checkpoints config.yaml lineage.json loss.png metrics.jsonl model result.json samples.jsonl summary.md"
    assert names == set(expected.split())
    files = {p.name for p in (trained / "model").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert files >= {"generation_config.json"}


def test_samples_show_the_model_from_before_its_first_step(trained: Path) -> None:
    samples = [json.loads(line) for line in whole_lines(trained / "samples.jsonl")]
    assert sorted({sample["step"] for sample in samples}) == [0, 6, 12]
    for sample in samples:
        assert sample["text"] == "".join(piece for piece, _ in sample["tokens"])
        assert all(0 <= share <= 1 for _, share in sample["tokens"])
    untrained = [share for sample in samples if sample["step"] == 0 for _, share in sample["tokens"]]
    assert max(untrained) < 0.2  # about 1/300 each: it knows nothing yet


def test_the_loss_falls_by_more_than_noise(trained: Path) -> None:
    losses = [m["loss"] for m in read_metrics(trained) if "loss" in m]
    assert losses[-1] < losses[0] - 0.5


def test_training_is_in_bits_per_byte_only_where_document_ends_are_few(
    trained: Path, make_shards: Callable[..., Path], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    short = {"train": ["Mara is a baker."] * 300, "validation": ["Odo is a smith."] * 50}
    runs = [trained, train(make_shards(tmp_path / "shards", tokenizer, short), tmp_path / "short")]
    last = [read_metrics(path)[-1] for path in runs]
    assert ["bits_per_byte" in line for line in last] == [True, False]
    assert all("validation_bits_per_byte" in line for line in last)


def test_the_json_object_has_its_fields(story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(story_shards, tmp_path / "r", "--json", "--samples.every=0")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["command"] == "pretrain train"
    assert result["out"] == str(tmp_path / "r")
    assert result["model"] == str(tmp_path / "r" / "model")
    assert result["steps"] == 12
    assert {"elapsed_s", "cpu_s", "train_loss", "validation_loss", "validation_bits_per_byte"} <= set(result)
    floors = result["floor_world_bits_per_byte"], result["floor_grammar_bits_per_byte"]
    assert 0 < floors[0] < floors[1] < result["validation_bits_per_byte"]


def test_validation_loss_equals_a_pass_by_transformers(trained: Path, story_shards: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(trained / "model")
    stream = shards.open_split(story_shards, "validation")
    nats, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, stream.num_tokens - 1, 32):
            ids = torch.from_numpy(stream.read(start, min(33, stream.num_tokens - start)))
            logits = model(ids[None, :-1]).logits[0]
            nats += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
            count += len(ids) - 1
    result = json.loads((trained / "result.json").read_text())
    assert result["validation_loss"] == pytest.approx(nats / count, rel=1e-5)


def test_two_runs_of_one_seed_are_the_same_to_the_bit(trained: Path, story_shards: Path, tmp_path: Path) -> None:
    assert weights(train(story_shards, tmp_path / "again")) == weights(trained)


def test_checkpoints_samples_and_validation_do_not_touch_training(
    trained: Path, story_shards: Path, tmp_path: Path
) -> None:
    other = ["--run.checkpoint-every=7", "--validation.every=5", "--samples.every=1", "--run.log-every=3"]
    assert weights(train(story_shards, tmp_path / "other", *other)) == weights(trained)


def test_another_seed_is_another_model(trained: Path, story_shards: Path, tmp_path: Path) -> None:
    assert weights(train(story_shards, tmp_path / "other", "--run.seed=1")) != weights(trained)


def test_killed_at_any_moment_it_ends_bit_for_bit_the_same(trained: Path, story_shards: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "fledge", *arguments(story_shards, killed)]
    for kill_at in (5, 10):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and max((m["step"] for m in _metrics(killed)), default=0) < kill_at:
            time.sleep(0.002)  # polls another process's file
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = [sys.executable, "-m", "fledge", "pretrain", "train", "--resume", str(killed)]
    assert run(["pretrain", "train", "--resume", str(killed)]) == 0
    assert weights(killed) == weights(trained)
    steps = [m["step"] for m in read_metrics(killed)]
    assert steps == [m["step"] for m in read_metrics(trained)]
    losses = [(m["step"], m.get("loss"), m.get("validation_loss")) for m in read_metrics(killed)]
    assert losses == [(m["step"], m.get("loss"), m.get("validation_loss")) for m in read_metrics(trained)]


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(path)
    except (OSError, ValueError):
        return []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_polite_stop_writes_a_checkpoint_and_exits_130(
    trained: Path, story_shards: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "r"
    command = [sys.executable, "-m", "fledge", *arguments(story_shards, out, "--run.max-steps=100000")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not _metrics(out):
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate()
    assert process.returncode == 130
    step = checkpoints.step_of(checkpoints.listed(out / "checkpoints")[-1])
    assert f"error: stopped at step {step}; continue with --resume {out}" in stderr


def test_a_profile_holds_its_steps_and_changes_nothing(trained: Path, story_shards: Path, tmp_path: Path) -> None:
    out = train(story_shards, tmp_path / "r", "--profile=3")
    assert weights(out) == weights(trained)
    table = (out / "profile" / "operators.md").read_text()
    assert table.startswith("# Operators of 3 steps\n")
    assert "_linear_pointwise" in table or "aten::addmm" in table
    events = json.loads(gzip.decompress((out / "profile" / "trace.json.gz").read_bytes()))["traceEvents"]
    steps = [event["name"] for event in events if event["name"].startswith("ProfilerStep")]
    assert steps == ["ProfilerStep#6", "ProfilerStep#7", "ProfilerStep#8"]
    before = (out / "profile" / "trace.json.gz").read_bytes()
    assert run(["pretrain", "train", "--resume", str(out), "--run.max-steps=16", "--profile=2"]) == 0
    assert (out / "profile" / "trace.json.gz").read_bytes() == before


def test_a_run_without_a_checkpoint_starts_again_in_its_folder(
    trained: Path, story_shards: Path, tmp_path: Path
) -> None:
    out = train(story_shards, tmp_path / "r")
    for checkpoint in checkpoints.listed(out / "checkpoints"):
        (checkpoint / checkpoints.MANIFEST).unlink()
    (out / "result.json").unlink()
    assert run(["pretrain", "train", "--resume", str(out)]) == 0
    assert weights(out) == weights(trained)


def test_a_finished_run_says_so_and_changes_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    assert run(["pretrain", "train", "--resume", str(trained)]) == 0
    assert "finished already; nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


def test_a_finished_run_can_be_asked_for_more_steps(story_shards: Path, tmp_path: Path) -> None:
    out = train(story_shards, tmp_path / "r")
    assert run(["pretrain", "train", "--resume", str(out), "--run.max-steps=16"]) == 0
    assert json.loads((out / "result.json").read_text())["steps"] == 16
    assert [m["step"] for m in read_metrics(out)][-1] == 16


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--optim.learning-rate=1", "--optim.learning-rate 1.0: the run has 0.003; leave it out"),
        ("--run.max-steps=5", "--run.max-steps 5: the run has 12 (it can only grow)"),
    ],
)
def test_an_option_that_differs_on_resume_is_an_error(
    trained: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert run(["pretrain", "train", "--resume", str(trained), option]) == 1
    assert message in capsys.readouterr().err


def test_options_may_be_repeated_on_resume(trained: Path, story_shards: Path) -> None:
    assert run(["pretrain", "train", "--resume", str(trained), "--data", str(story_shards), TINY[0]]) == 0


def test_a_time_budget_is_frozen_as_steps_and_leaves_the_run_untouched(story_shards: Path, tmp_path: Path) -> None:
    out = train(story_shards, tmp_path / "r", "--time-budget=1s")
    frozen = yaml.safe_load((out / "config.yaml").read_text())
    assert frozen["time_budget"] is None
    steps = frozen["run"]["max_steps"]
    assert steps != 12
    again = tmp_path / "again"
    assert run(["pretrain", "train", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert weights(again) == weights(out)


def test_seeds_give_one_summary_and_a_model_each(
    story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r"
    train(story_shards, out, "--seeds=0,1", "--json", "--samples.every=0")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    values = result["results"]["validation_loss"]["values"]
    assert result["seeds"] == [0, 1]
    assert result["results"]["validation_loss"]["mean"] == pytest.approx(sum(values) / 2)
    assert weights(out / "seed-0") != weights(out / "seed-1")
    assert run(["pretrain", "sample", str(out)]) == 1
    assert f"give one of {out}/seed-0" in capsys.readouterr().err


def test_a_parent_is_continued_with_its_own_shape_and_measured_on_its_old_text(
    trained: Path,
    make_shards: Callable[..., Path],
    tokenizer: TextTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = {"train": ["the cat sat on the mat. " * 40] * 5, "validation": ["the cat sat on the mat. " * 20]}
    data = make_shards(tmp_path / "new", tokenizer, texts)
    out = train(data, tmp_path / "adapted", "--init", str(trained), "--model.layers=7", "--model.context=64", "--json")
    captured = capsys.readouterr()
    assert f"left out: the shape is that of {trained}/model; windows are of 32 tokens, of 32" in captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert result["validation_bits_per_byte"] < result["validation_bits_per_byte_before"]
    assert result["parent_validation_bits_per_byte"] > result["parent_validation_bits_per_byte_before"]
    frozen = yaml.safe_load((out / "config.yaml").read_text())
    assert (frozen["model"]["layers"], frozen["model"]["context"]) == (2, 32)
    kinds = [p["kind"] for p in json.loads((out / "lineage.json").read_text())["parents"]]
    assert kinds == ["shards", "model"]


def test_a_parent_with_another_tokenizer_is_refused(
    trained: Path, make_shards: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = TextTokenizer(learn("bpe", iter(["other text " * 99]), 262), None, default_chat_template())
    data = make_shards(tmp_path / "new", other, {"train": ["a b c " * 99], "validation": ["a b " * 99]})
    assert run(arguments(data, tmp_path / "r", "--init", str(trained))) == 1
    assert "its tokenizer (300 tokens) is not that of the shards" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--model.heads=5"], 1, "width 32 can't be split over 5 heads"),
        (["--model.kv-heads=3", "--model.heads=4"], 1, "4 heads can't share 3 key-value heads"),
        (["--model.context=999999"], 1, "too few for one window of 999999"),
        (["--model.architecture=rnn"], 1, "no architecture named 'rnn' in fledge/models"),
        (["--batch.microbatch=3"], 1, "microbatch 3 does not divide sequences 4"),
        (["--time-budget=soon"], 1, "'soon' is no duration; write 90s, 3m or 1h30m"),
        (["--optim.learning-rte=1"], 2, "No such option"),
        (["--config=tinny"], 1, "did you mean 'tiny'?"),
        (["--run.device=cuda"], 1, "--run.device cuda: this machine has none"),
        (["--seeds=0,x"], 2, "--seeds 0,x: expected whole numbers, such as 0,1,2"),
        (["--init=no/such/model"], 1, "no/such/model: no such folder"),
    ],
)
def test_wrong_settings_are_errors_that_say_what_to_do(
    story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, message: str
) -> None:
    import torch

    if "--run.device=cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert run(arguments(story_shards, tmp_path / "r", *more)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()  # so the corrected command can be typed with the same --out


def test_shards_cut_short_are_an_error(story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "shards"
    broken.mkdir()
    for file in story_shards.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    shard = broken / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert run(arguments(broken, tmp_path / "r")) == 1
    assert f"{shard}: cut short" in capsys.readouterr().err


def test_a_diverging_run_stops_with_exit_code_3_and_names_the_step(
    story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["--optim.optimizer=adamw", "--optim.learning-rate=1000", "--guard.spike=1.5", "--guard.max-rollbacks=1"]
    assert run(arguments(story_shards, tmp_path / "r", *wild)) == 3
    assert "lower the learning rates" in capsys.readouterr().err


def test_dry_run_prints_the_config_and_writes_nothing(
    story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(story_shards, tmp_path / "r", "--dry-run")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["width"] == 32
    assert not (tmp_path / "r").exists()


def test_the_size_dial_is_frozen_as_plain_values(story_shards: Path, tmp_path: Path) -> None:
    out, others = tmp_path / "r", ("--model.layers", "--model.width", "--model.heads", "--batch.seq", "--optim.learn")
    own = [option for option in TINY if not option.startswith(others)]
    command = ["pretrain", "train", "--data", str(story_shards), "--out", str(out), *own]
    assert run([*command, "--size=1", "--run.max-steps=1", "--samples.every=0"]) == 0
    frozen = yaml.safe_load((out / "config.yaml").read_text())
    assert frozen["size"] is None
    assert (frozen["model"]["layers"], frozen["model"]["width"], frozen["model"]["heads"]) == (1, 64, 1)
    assert run(["pretrain", "train", "--resume", str(out), "--size=1"]) == 0


def test_a_run_too_short_for_a_profile_says_so(
    story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(story_shards, tmp_path / "r", "--profile=3", "--run.max-steps=3")
    assert "--profile: the run ended within its first 6 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init=somewhere", "--size=2"], "error: --init and --size exclude each other"),
        (["--model.width=4000000"], "out of memory; use a smaller --model.context, --model.width or --model.layers"),
    ],
)
def test_an_impossible_shape_is_one_line(
    story_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(arguments(story_shards, tmp_path / "r", *options)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_sample_continues_prompts(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "sample", str(trained), "--max-new-tokens=5"]
    assert run([*command, "--prompt", "It was", "--prompt", "The", "--num-samples=2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [s["prompt"] for s in result["samples"]] == ["It was"] * 2 + ["The"] * 2
    assert run([*command, "--prompt", "It was"]) == 0
    assert capsys.readouterr().out.startswith("It was")
    assert run([*command, "--prompt", "It was the day of the harvest. " * 40]) == 0
    assert "the context has room for the last 27 of" in capsys.readouterr().err


def test_a_sample_ends_where_the_model_folder_says(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    tokenizer = TextTokenizer.from_folder(model)
    every_id = list(range(tokenizer.vocab_size))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": every_id}), encoding="utf-8")
    assert run(["pretrain", "sample", str(model), "--prompt=It was", "--max-new-tokens=9", "--json"]) == 0
    (sample,) = json.loads(capsys.readouterr().out.splitlines()[-1])["samples"]
    assert sample["text"].encode() in tokenizer.token_bytes()


def test_the_model_loads_as_it_was_saved(trained: Path, tmp_path: Path) -> None:
    folder.save_model(folder.load_model(trained), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == weights(trained)
