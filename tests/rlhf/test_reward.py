"""`fledge rlhf reward`, through the command line, and the parts that it measures with."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval import intervals
from eval.reward import RewardModel
from fledge import checkpoints
from fledge.__main__ import run
from fledge.data import preferences
from fledge.data.preferences import Pair
from fledge.metrics_log import read_metrics
from fledge.models import classifier
from fledge.tokens import TextTokenizer
from rlhf import agreement, preference_baselines

DATA = "village:hamlet/preferences#150"
QUICK = ["--config=tiny", "--run.max-steps=8", "--run.checkpoint-every=4", "--validation.every=4", "--run.threads=1"]


def train(base: Path, out: Path, *more: str, data: str = DATA) -> int:
    return run(["rlhf", "reward", str(base), "--data", data, "--out", str(out), *QUICK, *more])


def weights(path: Path) -> bytes:
    return (path / "model" / "model.safetensors").read_bytes()


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps."""
    out = tmp_path_factory.mktemp("runs") / "rm"
    assert train(qwen3, out) == 0
    return out


def test_a_run_leaves_everything_it_promises(trained: Path) -> None:
    names = {p.name for p in trained.iterdir() if not p.name.startswith(".")}
    expected = "checkpoints config.yaml lineage.json metrics.jsonl model result.json summary.md"
    assert names == {*expected.split(), "predictions.jsonl", "loss.png", "calibration.png"}
    result = json.loads((trained / "result.json").read_text())
    assert set(result["baselines"]) == {"length_only", "bag_of_words"}
    low, high = result["intervals"]["accuracy"]
    assert low < result["accuracy"] < high
    assert result["test_rows"] == len(read_rows(trained))
    assert result["accuracy"] == np.mean([r["reward_chosen"] > r["reward_rejected"] for r in read_rows(trained)])
    assert {"value", "low", "high", "n"} <= set(result["length_matched"])
    assert 0.7 < result["ceiling"] < 0.9
    assert "accuracy" in (trained / "model" / "README.md").read_text()
    assert "best baseline, bag_of_words" in (trained / "summary.md").read_text()


def test_no_prompt_that_is_measured_was_trained_on(trained: Path, qwen3: Path, tmp_path: Path) -> None:
    assert train(qwen3, tmp_path / "r", "--run.seed=5", "--run.max-steps=1") == 0
    first, second = ([row["where"] for row in read_rows(path)] for path in (trained, tmp_path / "r"))
    assert first == second


@pytest.mark.parametrize("base", ["qwen3", "gpt2"])
def test_transformers_alone_gives_the_scores_that_were_measured(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert train(request.getfixturevalue(base), tmp_path / "r", "--run.dtype=bfloat16") == 0  # in training only
    folder = tmp_path / "r" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    for row in read_rows(tmp_path / "r")[:5]:
        messages = [*row["prompt"], {"role": "assistant", "content": row["chosen"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, -64:]
        with torch.no_grad():
            assert float(model(input_ids=ids).logits) == pytest.approx(row["reward_chosen"], abs=1e-5)


@pytest.mark.parametrize("base", ["qwen3", "gpt2"])
@pytest.mark.parametrize("by", ["transformers", "fledge"])
def test_padding_and_batch_leave_scores_unchanged(
    base: str, by: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = RewardModel(classifier.from_base(request.getfixturevalue(base), ["reward"]))
    if by == "fledge":
        made.inner.save(tmp_path)
        made = RewardModel.open(str(tmp_path))
    prompts = [[{"role": "user", "content": "Who?" + " Who?" * n}] for n in (0, 3, 9)]
    answers = ["Ada", "Ada and Bo " * 3, ""]
    together = made.score(prompts, answers)
    alone = [made.score([prompt], [answer])[0] for prompt, answer in zip(prompts, answers, strict=True)]
    assert together == pytest.approx(alone, abs=1e-6)
    assert len({round(score, 4) for score in alone}) == 3
    backwards = made.score(prompts[::-1], answers[::-1])
    assert backwards[::-1] == pytest.approx(alone, abs=1e-6)


def test_a_conversation_that_is_too_long_loses_its_beginning_and_is_counted(qwen3: Path) -> None:
    made = RewardModel(classifier.from_base(qwen3, ["reward"]))
    asked = [{"role": "user", "content": "Who? " * 100}]
    ids = made.ids(asked, "Ada.")
    assert len(ids) == 64
    assert ids[-8:] == made.ids([{"role": "user", "content": "?"}], "Ada.")[-8:]
    assert made.num_cut == 1


def test_the_loss_of_a_step_is_the_written_formula(qwen3: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}?", "chosen": "a" * (n + 1), "rejected": "no", "preference_strength": n / 4} for n in range(12)
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = preferences.read([str(file)], 0.2)
    pairs, _ = preferences.split(data.train, 0.05, 0.2)
    pairs = pairs[: len(pairs) // 2 * 2]
    options = ["--margin=2", "--center-rewards=0.5", "--run.max-steps=1", "--run.dtype=float32"]
    options += [f"--batch.examples={len(pairs)}", f"--batch.microbatch={len(pairs) // 2}"]
    assert train(qwen3, tmp_path / "r", *options, data=str(file)) == 0
    torch.manual_seed(0)
    made = RewardModel(classifier.from_base(qwen3, ["reward"]))
    losses = []
    for pair in pairs:
        good, bad = made.score([pair.prompt, pair.prompt], [pair.chosen, pair.rejected])
        odds = good - bad - 2 * (pair.strength or 0)
        losses.append(math.log(1 + math.exp(-odds)) + 0.5 * (good + bad) ** 2)
    (line,) = read_metrics(tmp_path / "r")
    assert line["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("options", [[], ["--lora.rank=4", "--lora.dropout=0.1"]])
def test_continued_after_a_kill_the_model_is_the_same_to_the_bit(
    gpt2: Path, tmp_path: Path, options: list[str]
) -> None:
    out = tmp_path / "r"
    assert train(gpt2, out, *options) == 0
    whole = weights(out)
    for step in checkpoints.listed(out / "checkpoints")[1:]:
        shutil.rmtree(step)
    (out / "result.json").unlink()
    shutil.rmtree(out / "model")
    assert run(["rlhf", "reward", "--resume", str(out)]) == 0
    assert weights(out) == whole


def test_adapters_have_the_dropout_that_was_asked_for(qwen3: Path, tmp_path: Path) -> None:
    for share in ("0", "0.5"):
        assert train(qwen3, tmp_path / share, "--lora.rank=2", f"--lora.dropout={share}", "--run.max-steps=1") == 0
    assert weights(tmp_path / "0") != weights(tmp_path / "0.5")


def test_adapters_leave_a_whole_model(qwen3: Path, tmp_path: Path) -> None:
    assert train(qwen3, tmp_path / "r", "--lora.rank=4") == 0
    rows = read_rows(tmp_path / "r")
    made = RewardModel.open(str(tmp_path / "r"))
    found = made.score([row["prompt"] for row in rows], [row["rejected"] for row in rows])
    assert found == pytest.approx([row["reward_rejected"] for row in rows], abs=1e-5)
    assert json.loads((tmp_path / "r" / "result.json").read_text())["merge_max_logit_difference"] < 1e-5


def test_checks_read_a_part_of_the_pairs_and_the_temperature_is_of_all(qwen3: Path, tmp_path: Path) -> None:
    found = []
    for name, options in {"all": [], "part": ["--validation.pairs=3"]}.items():  # the last step is checked alone
        assert train(qwen3, tmp_path / name, "--validation.every=8", *options) == 0
        found.append((json.loads((tmp_path / name / "result.json").read_text()), read_metrics(tmp_path / name)[-1]))
    (whole, every), (part, some) = found
    assert whole["validation_pairs"] > 3
    assert some["validation_accuracy"] in (0, 1 / 3, 2 / 3, 1)
    assert some["validation_loss"] != every["validation_loss"]
    assert part["temperature"] == whole["temperature"]


def test_it_learns_which_word_is_preferred(qwen3: Path, tmp_path: Path) -> None:
    names = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo"]
    rows = [
        {"prompt": f"Who is {a} to {b}?", "chosen": f"Gladly. {a}.", "rejected": f"Who cares? {a}."}
        for a in names
        for b in names
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "--run.max-steps=40",
        "--batch.epochs=20",
        "--optim.learning-rate=0.01",
        "--validation.every=40",
        "--run.log-every=1",
    ]
    assert train(qwen3, tmp_path / "r", *options, data=str(tmp_path / "a.jsonl")) == 0
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["accuracy"] == 1.0
    losses = [line["loss"] for line in read_metrics(tmp_path / "r")]
    assert losses[0] == pytest.approx(math.log(2), abs=0.05)
    assert losses[-1] < 0.3


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (None, ["--margin=1"], "--margin 1: not all pairs have a 'preference_strength'; take 0"),
        (
            None,
            ["--test-share=0.9", "--validation.share=0.2"],
            "--test-share and --validation.share leave nothing to train on",
        ),
        (None, ["--lora.rank=2", "--lora.targets=nothing"], "--lora.targets nothing: no layer of the model"),
        (["1", "1"], [], "nothing to train on; give pairs for at least two prompts"),
        (["1", "2"], [], "nothing to train on; give pairs for three prompts or more"),
        (["1", ""], [], "a.jsonl:2: the prompt is empty; 1 of 2 rows are bad"),
    ],
)
def test_bad_input_is_refused_in_words(
    qwen3: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[str] | None,
    options: list[str],
    message: str,
) -> None:
    data = DATA
    if rows is not None:
        data = str(tmp_path / "a.jsonl")
        made = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in rows]
        Path(data).write_text("".join(json.dumps(row) + "\n" for row in made))
    assert train(qwen3, tmp_path / "r", *options, data=data) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r" / "model").exists()


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_a_pair_that_the_template_refuses_is_named(
    qwen3: Path, tokenizer: TextTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    odd = shutil.copytree(qwen3, tmp_path / "odd")
    template = "{% if messages[0].content == 'Who?' %}{{ raise_exception('not who') }}{% endif %}"
    TextTokenizer(tokenizer.inner, tokenizer.roles, template + str(tokenizer.chat_template)).save(odd)
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in ("1", "2", "Who?", "3", "4")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", str(tmp_path / "a.jsonl"), "--config=tiny", "--out", str(tmp_path / "r")]
    assert run(["rlhf", command, str(odd), *options]) == 1
    expected = "a.jsonl:3: the chat template refuses these messages: not who; mend it or leave it out"
    assert expected in capsys.readouterr().err


def pair(chosen: str, rejected: str, prompt: str = "?", **row: Any) -> Pair:
    return Pair("a.jsonl:1", [{"role": "user", "content": prompt}], chosen, rejected, None, row)


def test_agreement_is_measured_among_all_among_equally_long_and_with_length_balanced() -> None:
    lengths = [(10, 10), (20, 18), (20, 10), (30, 10), (10, 20), (10, 30)]
    pairs = [pair("a" * a, "b" * b, f"{n}?") for n, (a, b) in enumerate(lengths)]
    found = agreement.agreement(pairs, np.array([1.0, -1.0, 1.0, 1.0, -1.0, 0.0]))
    assert (found.accuracy.value, found.accuracy.n) == (3.5 / 6, 6)
    assert (found.length_matched.value, found.length_matched.n) == (0.5, 2)
    # longer chosen: won 2 of 3; shorter chosen: 0.5 of 2
    assert found.length_balanced.value == pytest.approx((2 / 3 + 0.25) / 2)
    assert found.length_matched.low < 0.1
    by_length = agreement.agreement(pairs, np.array([float(a - b) for a, b in lengths]))
    assert by_length.length_balanced.value == 0.5


def test_where_no_shorter_answer_was_chosen_nothing_is_balanced() -> None:
    found = agreement.agreement([pair("long", "b", f"{n}?") for n in range(4)], np.ones(4))
    assert found.accuracy.value == 1
    assert intervals.as_json(found.length_balanced) == {"value": None, "low": None, "high": None, "n": 0}


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    margin_N = np.array([1.0, 1, 1, 1, -1, -1, -1, -1] * 5)
    apart = [pair("a", "b", f"{n}?") for n in range(40)]
    together = [pair("a", "b", f"{n // 4}?") for n in range(40)]
    widths = [a.high - a.low for a in (agreement.agreement(p, margin_N).accuracy for p in (apart, together))]
    assert widths[1] > 1.5 * widths[0]


def test_the_ceiling_is_reached_by_who_knows_the_chances_and_chance_by_who_does_not() -> None:
    chances = np.array([0.9, 0.6, 0.3, 0.2])
    pairs = [pair("a", "b", p_chosen=chance) for chance in chances]
    assert agreement.ceiling(pairs, chances - 0.5) == pytest.approx((0.75, 1.0))
    # expected accuracy of all the first: (0.9 + 0.6 + 0.3 + 0.2) / 4 = 0.5
    assert agreement.ceiling(pairs, np.ones(4)) == pytest.approx((0.75, 0.0))
    assert agreement.ceiling([*pairs, pair("a", "b")], np.ones(5)) is None


@pytest.mark.parametrize("chances", [[0.5, 0.5], ["0.9", "0.8"], [0.9, None], [0.9, 1.5]])
def test_chances_that_say_nothing_give_no_ceiling(chances: list[Any]) -> None:
    assert agreement.ceiling([pair("a", "b", p_chosen=chance) for chance in chances], np.array([1.0, -1.0])) is None


def test_calibration_is_perfect_where_a_margin_is_the_logarithm_of_the_odds() -> None:
    margin_N = np.array([math.log(3)] * 75 + [-math.log(3)] * 25)
    error, points = agreement.calibration(margin_N)
    assert error == pytest.approx(0, abs=1e-9)
    assert points == [(pytest.approx(0.75), 0.75, 100)]
    assert agreement.calibration(3 * margin_N)[0] == pytest.approx(27 / 28 - 0.75)


@pytest.mark.parametrize("longer_wins", [True, False])
def test_the_length_baseline_learns_its_sign(longer_wins: bool) -> None:
    long, short = "word " * 5, "word"
    train = [pair(*((long, short) if longer_wins else (short, long)))] * 3 + [pair("a", "b")]
    found = preference_baselines.margins(train, [pair(long, short), pair(short, long), pair("a", "b")])
    sign = 1 if longer_wins else -1
    assert np.sign(found["length_only"]).tolist() == [sign, -sign, 0]


def test_answers_without_words_have_no_word_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [pair("!" * n, "?") for n in range(1, 9)]
    assert list(preference_baselines.margins(pairs, pairs)) == ["length_only"]
    assert "baseline bag_of_words is left out: the texts have no words" in capsys.readouterr().err


def test_the_word_baseline_prefers_the_words_of_chosen_answers() -> None:
    train = [pair(f"gladly {n}", f"never {n}") for n in range(30)]
    found = preference_baselines.margins(train, [pair("gladly x", "never x"), pair("never", "gladly")])
    first, second = found["bag_of_words"]
    assert first > 0 > second
