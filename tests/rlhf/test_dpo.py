"""`fledge rlhf dpo`: ids, the loss against the paper's formula, exact resume, results, errors."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fledge import trainer_bridge
from fledge.__main__ import run
from fledge.data.preferences import Pair
from fledge.errors import DataError
from fledge.models import folder
from fledge.tokens import TextTokenizer
from rlhf import dpo
from rlhf.dpo import Example, examples_of
from rlhf.policy import Policy

QUICK = [
    "--run.threads=1",
    "--run.max-steps=6",
    "--run.checkpoint-every=2",
    "--validation.every=2",
    "--validation.pairs=16",
    "--validation.prompts=4",
    "--validation.at-end=8",
    "--sampling.max-new-tokens=6",
    "--batch.examples=4",
    "--optim.learning-rate=0.01",
]


def teach(base: Path, data: Path, out: Path, *more: str) -> int:
    options = ["--config=tiny", f"--data={data}", "--out", str(out), *QUICK, *more]
    return run(["rlhf", "dpo", str(base), *options])


def weights(path: Path) -> bytes:
    return (path / "model" / "model.safetensors").read_bytes()


def result_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "result.json").read_text()))


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair("here:1", [{"role": "user", "content": prompt}], chosen, rejected, None, {})


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that differ in their form, so that a few steps see it."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"Who is {n}?", "chosen": f"It is {n}.", "rejected": "no " * (n % 4 + 1)} for n in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def taught(qwen3: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps."""
    out = tmp_path_factory.mktemp("runs") / "dpo"
    assert teach(qwen3, pairs, out) == 0
    return out


# --- ids ---


def test_a_pair_is_the_prompt_and_what_the_policy_would_have_to_write(tokenizer: TextTokenizer) -> None:
    stop = tokenizer.special_ids["<|im_end|>"]
    (one,) = examples_of(tokenizer, stop, [pair("Who?", "Mara", "The <|im_end|> baker")], 64).examples
    read = [tokenizer.decode(ids, keep_special=True) for ids in (one.prompt, one.chosen, one.rejected)]
    assert read[0].endswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")
    assert read[1:] == ["Mara<|im_end|>", "The <|im_end|> baker<|im_end|>"]
    assert one.rejected.count(stop) == 1  # what someone typed is text


def test_without_a_template_an_answer_ends_the_document(tokenizer: TextTokenizer) -> None:
    plain = TextTokenizer(tokenizer.inner, tokenizer.roles)
    (one,) = examples_of(plain, plain.end_of_text_id, [pair("Who? ", "Mara", "Ann")], 64).examples
    assert plain.decode(one.prompt) == "Who? "
    assert one.chosen == [*plain.encode("Mara"), plain.end_of_text_id]


def test_a_long_prompt_loses_its_beginning_and_only_then_an_answer_its_end(tokenizer: TextTokenizer) -> None:
    stop = tokenizer.special_ids["<|im_end|>"]
    asked = pair("who keeps the goat of the baker " * 4, "Mara does", "Ann")
    (whole,) = examples_of(tokenizer, stop, [asked], 1000).examples
    found = examples_of(tokenizer, stop, [asked], whole.length - 3)
    (one,) = found.examples
    assert (one.chosen, one.rejected) == (whole.chosen, whole.rejected)
    assert one.prompt == whole.prompt[3:]
    assert (found.num_cut_prompts, found.num_cut_answers, found.num_dropped) == (1, 0, 0)

    talker = pair("Who?", "the goat of the baker " * 8 + "yes", "no, it is not " * 8)
    found = examples_of(tokenizer, stop, [talker], 24)
    (one,) = found.examples
    assert len(one.prompt) == 6
    assert len(one.chosen) == 18
    assert found.num_cut_answers == 1


def test_pairs_without_a_difference_within_the_limit_are_left_out_and_counted(tokenizer: TextTokenizer) -> None:
    stop = tokenizer.special_ids["<|im_end|>"]
    alike = pair("Who?", "the goat " * 20 + "yes", "the goat " * 20 + "no")
    assert examples_of(tokenizer, stop, [alike, pair("a", "b", "c")], 24).num_dropped == 1
    with pytest.raises(DataError, match=r"here:1: of none of these 1 pairs enough fits into 24 tokens"):
        examples_of(tokenizer, stop, [alike], 24)


# --- the loss ---


def slow_logprob(model: Any, one: Example, answer: list[int]) -> float:
    """log p(answer | prompt), token by token, each from a pass of its own."""
    total = 0.0
    for place, token in enumerate(answer):
        logits = model(torch.tensor([one.prompt + answer[:place]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_the_loss_is_equation_7_of_the_paper(
    kind: str, tokenizer: TextTokenizer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """-log sigmoid(beta ((log pi - log ref)(chosen) - (log pi - log ref)(rejected))), Rafailov et al. 2023."""
    beta, base = 0.3, request.getfixturevalue(kind)
    stop = tokenizer.special_ids["<|im_end|>"]
    pairs = [pair("Who?", "Mara", "The baker of the mill"), pair("Where is it now?", "at the inn", "no")]
    examples = examples_of(tokenizer, stop, pairs, 64).examples
    reference, policy = (folder.load_by_transformers(base) for _ in range(2))
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        expected = 0.0
        for one in examples:
            one.reference = (slow_logprob(reference, one, one.chosen), slow_logprob(reference, one, one.rejected))
            rises = [
                slow_logprob(policy, one, answer) - own
                for answer, own in zip((one.chosen, one.rejected), one.reference, strict=True)
            ]
            expected += math.log1p(math.exp(-beta * (rises[0] - rises[1]))) / len(examples)
            assert dpo.logprobs(Policy(reference), [one])[0] == pytest.approx(one.reference, abs=1e-4)
    measured = theirs(policy, examples, tokenizer, beta, tmp_path)
    assert measured["validation_loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - math.log(2)) > 0.01


def theirs(
    policy: Any, examples: list[Example], tokenizer: TextTokenizer, beta: float, tmp_path: Path
) -> dict[str, float]:
    """What the trainer measures, padding and all."""
    from fledge import config, rundir
    from rlhf.config import DpoConfig

    settings = config.load(
        DpoConfig, None, {("model",): "x", ("data",): ["x"], ("batch", "examples"): "3", ("run", "threads"): "1"}
    )
    settings = trainer_bridge.resolved(settings, 1)
    job = trainer_bridge.Job(
        model=policy,
        examples=examples,
        collate=dpo.collate,
        loss=None,
        num_targets=lambda batch: len(batch["input_ids"]) // 2,
        held_out=examples,
        tokenizer=tokenizer,
        arguments={"beta": beta},
    )
    with rundir.create(settings, tmp_path / "r") as run_folder:
        trainer = trainer_bridge._make(job, settings, run_folder, "trl-dpo")
    policy.eval()
    with torch.no_grad():
        measured: dict[str, float] = trainer.measured()
    return measured


# --- runs ---


def test_a_run_learns_and_leaves_a_model_that_transformers_loads(taught: Path) -> None:
    result = result_of(taught)
    assert result["validation_loss_before"] == pytest.approx(math.log(2))
    assert result["validation_loss"] < math.log(2) - 0.01
    assert result["accuracy"]["low"] <= result["accuracy"]["value"] <= result["accuracy"]["high"]
    assert math.isfinite(result["kl"])
    model = transformers.AutoModelForCausalLM.from_pretrained(taught / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(taught / "model")
    stops = tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id)
    assert stops == ["<|im_end|>", "<|endoftext|>"]
    samples = [json.loads(line) for line in (taught / "samples.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "text", "kl"} <= set(samples[0])
    assert "implicit rewards tell the chosen answer of" in (taught / "summary.md").read_text()


@pytest.mark.parametrize("kind", ["ipo", "hinge"])
def test_another_loss_begins_where_its_formula_says(kind: str, qwen3: Path, pairs: Path, tmp_path: Path) -> None:
    more = [f"--loss.kind={kind}", "--loss.beta=0.2", "--optim.learning-rate=1e-12", "--run.max-steps=1"]
    assert teach(qwen3, pairs, tmp_path / "r", *more) == 0
    begins = {"ipo": 1 / (2 * 0.2) ** 2, "hinge": 1}[kind]  # Azar et al. 2023, eq. 17; Zhao et al. 2023
    result = result_of(tmp_path / "r")
    assert result["validation_loss_before"] == pytest.approx(begins)
    assert result["validation_loss"] == pytest.approx(begins, abs=1e-4)


def test_the_robust_loss_has_the_smoothing_and_the_beta_that_were_asked_for(
    qwen3: Path, pairs: Path, tmp_path: Path
) -> None:
    """(-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e), Chowdhury et al. 2024 (arXiv 2403.00409)."""
    more = ["--loss.kind=robust", "--loss.label-smoothing=0.2", "--loss.beta=0.5", "--validation.pairs=1"]
    assert teach(qwen3, pairs, tmp_path / "r", *more) == 0
    result = result_of(tmp_path / "r")
    right, wrong = (math.log1p(math.exp(-sign * result["margin"])) for sign in (1, -1))
    assert abs(result["margin"]) > 0.01
    assert result["validation_loss"] == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6, abs=1e-4)


def test_the_saved_model_has_the_margin_that_trl_measured(taught: Path) -> None:
    metrics = [json.loads(line) for line in (taught / "metrics.jsonl").read_text().splitlines()]
    best = next(m for m in metrics if m["step"] == result_of(taught)["best_step"])
    assert result_of(taught)["margin"] == pytest.approx(best["validation_margin"], abs=1e-4)
    assert result_of(taught)["validation_loss"] == best["validation_loss"]


def test_what_has_not_learned_is_its_reference_in_bfloat16_too(qwen3: Path, pairs: Path, tmp_path: Path) -> None:
    assert teach(qwen3, pairs, tmp_path / "r", "--run.dtype=bfloat16", "--optim.learning-rate=1e-12") == 0
    result = result_of(tmp_path / "r")
    assert result["chosen_rise"] == pytest.approx(0, abs=1e-5)
    assert result["margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "more", [["--batch.microbatch=2"], ["--lora.rank=2", "--lora.dropout=0.1"]], ids=["full", "lora"]
)
def test_continued_after_a_kill_the_model_is_the_same_to_the_bit(
    qwen3: Path, pairs: Path, tmp_path: Path, more: list[str]
) -> None:
    assert teach(qwen3, pairs, tmp_path / "whole", *more) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for gone in [*(tmp_path / "cut" / "checkpoints").glob("step-00000[56]"), tmp_path / "cut" / "model"]:
        shutil.rmtree(gone)
    (tmp_path / "cut" / "result.json").unlink()
    assert run(["rlhf", "dpo", "--resume", str(tmp_path / "cut")]) == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    if "--lora.rank=2" in more:
        assert result_of(tmp_path / "cut")["merge_same_greedy_tokens"]
        assert result_of(tmp_path / "cut")["merge_max_logit_difference"] < 1e-4


# --- errors ---


def test_adapters_have_the_dropout_that_was_asked_for(qwen3: Path, pairs: Path, tmp_path: Path) -> None:
    for share in ("0", "0.5"):
        more = ["--lora.rank=2", f"--lora.dropout={share}", "--run.max-steps=1"]
        assert teach(qwen3, pairs, tmp_path / share, *more) == 0
    assert weights(tmp_path / "0") != weights(tmp_path / "0.5")


def test_what_is_wrong_is_told(qwen3: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert teach(qwen3, pairs, tmp_path / "r", "--max-length=65") == 1
    assert "--max-length 65: the model's context is 64 tokens; give at most that" in capsys.readouterr().err
    assert teach(qwen3, pairs, tmp_path / "r", "--loss.kind=ipo", "--loss.label-smoothing=0.1") == 1
    assert "loss.label_smoothing is of the robust loss alone, loss.kind is ipo" in capsys.readouterr().err
    assert teach(qwen3, pairs, tmp_path / "r", "--sampling.max-new-tokens=62") == 1
    assert "no held-out prompt leaves room for an answer of 62 tokens" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_template_that_does_not_mark_answers_is_refused(
    qwen3: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(qwen3, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert teach(tmp_path / "m", pairs, tmp_path / "r") == 1
    assert "does not mark what the assistant says; teach it fledge's first" in capsys.readouterr().err


def test_other_data_is_not_resumed(
    qwen3: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    shutil.copy(pairs, data)
    assert teach(qwen3, data, tmp_path / "r", "--run.max-steps=2") == 0
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "new", "chosen": "row", "rejected": "none"}) + "\n")
    assert run(["rlhf", "dpo", "--resume", str(tmp_path / "r"), "--run.max-steps=8"]) == 1
    assert "its data changed since the run began" in capsys.readouterr().err
