"""`fledge rlhf ppo`: it learns, continues exactly, shares weights, runs in two processes, and says what is wrong."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fledge.__main__ import run
from fledge.checkpoints import read_state
from fledge.metrics_log import read_metrics
from fledge.models.folder import load_model, read_tensors
from fledge.tokens import TextTokenizer
from rlhf.kl import KLControl
from rlhf.ppo import _checked_metrics

QUICK = [
    "--run.threads=1",
    "--run.device=cpu",
    "--run.dtype=float32",
    "--run.max-steps=4",
    "--run.checkpoint-every=1",
    "--sampling.max-new-tokens=6",
    "--rollout.episodes=8",
    "--batch.minibatch=4",
    "--batch.microbatch=2",
    "--validation.every=2",
    "--validation.prompts=4",
    "--validation.at-end=6",
    "--prompts=village:hamlet/instructions:test#40",
]


@pytest.fixture(scope="module")
def likes_e(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward: how many of an answer's characters are an e."""
    file = tmp_path_factory.mktemp("rewards") / "likes_e.py"
    file.write_text("def score(rows, answers):\n    return [a.count('e') / (1 + len(a)) for a in answers]\n")
    return file


def ppo(model: Path, reward: Path | str, out: Path, *more: str) -> int:
    options = [f"--reward={reward}", "--config=tiny", "--out", str(out), *QUICK, *more]
    return run(["rlhf", "ppo", str(model), *options])


def weights(path: Path) -> bytes:
    return (path / "model" / "model.safetensors").read_bytes()


def result_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "result.json").read_text()))


def cut(whole: Path, to: Path) -> Path:
    """A copy of a finished run as if it had been killed after step 2."""
    shutil.copytree(whole, to)
    for gone in ("checkpoints/step-000004", "checkpoints/step-000003", "model"):
        shutil.rmtree(to / gone, ignore_errors=True)
    (to / "result.json").unlink()
    return to


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_reward_rises_by_more_than_noise(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    more = ["--run.max-steps=20", "--rollout.episodes=64", "--batch.minibatch=32", "--batch.microbatch=32"]
    more += ["--batch.epochs=3", "--optim.learning-rate=2e-2", "--kl.weight=0.01", "--validation.every=10"]
    more += ["--validation.at-end=64", "--prompts=village:hamlet/instructions#600"]
    assert ppo(qwen3, likes_e, tmp_path / "r", *more) == 0
    found = result_of(tmp_path / "r")
    assert found["reward_gain"]["low"] > 0
    assert found["kl"] > 0
    assert found["reward_after"] == pytest.approx(found["reward_before"] + found["reward_gain"]["value"])


def test_the_folder_is_a_model_of_transformers(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    parent = shutil.copytree(qwen3, tmp_path / "parent")
    (parent / "generation_config.json").write_text('{"eos_token_id": [7, 0]}')
    assert ppo(parent, likes_e, tmp_path / "r") == 0
    ids = torch.arange(5, 15)[None]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "model")
    torch.testing.assert_close(load_model(tmp_path / "r")(ids), model(ids).logits, atol=1e-5, rtol=1e-5)
    assert model.generation_config.eos_token_id == [7, 0]
    assert TextTokenizer.from_folder(tmp_path / "r" / "model").chat_template


@pytest.mark.parametrize("more", [[], ["--lora.rank=2"], ["--scores.scale=running", "--kl.target=1"]])
def test_continued_after_a_kill_the_model_is_the_same_to_the_bit(
    qwen3: Path, likes_e: Path, tmp_path: Path, more: list[str]
) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "whole", "--run.keep-checkpoints=9", *more) == 0
    again = cut(tmp_path / "whole", tmp_path / "cut")
    assert run(["rlhf", "ppo", "--resume", str(again)]) == 0
    assert weights(again) == weights(tmp_path / "whole")
    timeless = [
        [{k: v for k, v in line.items() if not k.endswith(("_s", "_share"))} for line in read_metrics(path)]
        for path in (again, tmp_path / "whole")
    ]
    assert timeless[0] == timeless[1]


def test_with_adapters_the_reference_is_the_parent(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    more = ["--lora.rank=4", "--optim.learning-rate=0.02"]
    assert ppo(qwen3, likes_e, tmp_path / "r", *more) == 0
    lines = read_metrics(tmp_path / "r")
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)  # adapters change nothing until they are trained
    assert abs(lines[-1]["kl"]) > 1e-4
    before, after = read_tensors(qwen3), read_tensors(tmp_path / "r" / "model")
    assert set(before) == set(after)  # merged
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_a_reward_model_is_the_critic_s_beginning(
    qwen3: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(qwen3, judge, tmp_path / "r", "--gold=village") == 0
    assert "the critic begins as the reward model" in error_of(capsys)
    assert {"gold_reward_before", "gold_reward_after", "gold_reward_gain"} <= set(result_of(tmp_path / "r"))


def test_in_warm_up_the_policy_stays(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "r", "--optim.critic-warmup=9") == 0
    before, after = read_tensors(qwen3), read_tensors(tmp_path / "r" / "model")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result_of(tmp_path / "r")["updates"] == 0
    assert not any("entropy" in line for line in read_metrics(tmp_path / "r"))  # nobody measured it


def test_a_single_held_out_prompt_has_no_interval_and_the_result_is_json(
    qwen3: Path, likes_e: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "two.jsonl"
    prompts.write_text('{"prompt": "Where?"}\n{"prompt": "Who?"}\n', encoding="utf-8")
    options = ["--config=tiny", f"--reward={likes_e}", *QUICK[:-1], f"--prompts={prompts}", "--run.max-steps=1"]
    assert run(["rlhf", "ppo", str(qwen3), "--out", str(tmp_path / "r"), *options]) == 0
    gain = json.loads((tmp_path / "r" / "result.json").read_text(), parse_constant=pytest.fail)["reward_gain"]
    assert (gain["low"], gain["high"], gain["n"]) == (None, None, 1)
    assert f"difference {gain['value']:+.3g}\n" in (tmp_path / "r" / "summary.md").read_text()


def test_the_error_of_a_held_out_reward_is_that_of_its_mean() -> None:
    found = _checked_metrics({"kl": 0.5, "scores": [0.0, 2.0, 0.0, 2.0]})
    expected = {"validation_kl": 0.5, "validation_reward": 1, "validation_reward_error": (4 / 3) ** 0.5 / 2}
    assert found == pytest.approx(expected)


def test_the_lines_of_a_run_add_up(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    more = ["--kl.target=1", "--kl.weight=0.1", "--kl.horizon=100", "--optim.learning-rate=0.01", "--run.log-every=1"]
    (tmp_path / "gold.py").write_text("def score(rows, answers):\n    return [len(a) for a in answers]\n")
    assert ppo(qwen3, likes_e, tmp_path / "r", f"--gold={tmp_path}/gold.py", *more) == 0
    lines, result = read_metrics(tmp_path / "r")[1:], result_of(tmp_path / "r")
    control = KLControl(0.1, target=1, horizon=100)
    for line in lines:
        assert line["kl_weight"] == pytest.approx(control.weight)
        control.update(line["kl"], 8)
    assert result["tokens"] == round(sum(8 * line["answer_tokens"] for line in lines))
    assert result["updates"] == sum(line["updates"] for line in lines)
    before = json.loads((tmp_path / "r" / "before.json").read_text())["gold_scores"]
    assert result["gold_reward_before"] == pytest.approx(fmean(before))


def test_the_best_step_by_held_out_reward_is_published(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    """With a learning rate that ruins the model, an early step is the best."""
    more = ["--optim.learning-rate=1", "--optim.clip-norm=0", "--validation.every=1", "--run.max-steps=6"]
    assert ppo(qwen3, "length:3", tmp_path / "r", *more) == 0
    lines = [line for line in read_metrics(tmp_path / "r") if "validation_reward" in line and line["step"]]
    best = max(lines, key=lambda line: (line["validation_reward"], -line["step"]))
    kept = {path.name for path in (tmp_path / "r" / "checkpoints").iterdir()}
    assert f"step-{best['step']:06d}" in kept
    assert best["step"] < 6
    trained = read_state(tmp_path / "r" / "checkpoints" / f"step-{best['step']:06d}")["actor"]["model"]
    published = load_model(tmp_path / "r").state_dict()
    assert all(torch.equal(published[name], weight) for name, weight in trained.items())


def test_the_result_is_of_other_prompts_than_the_checks_that_picked_it(
    qwen3: Path, likes_e: Path, tmp_path: Path
) -> None:
    more = ["--validation.share=0.5", "--validation.samples=9", "--run.max-steps=1"]
    assert ppo(qwen3, likes_e, tmp_path / "r", *more) == 0
    checked = [json.loads(line)["prompt"] for line in (tmp_path / "r" / "samples.jsonl").read_text().splitlines()]
    ended = [sample["prompt"] for sample in json.loads((tmp_path / "r" / "before.json").read_text())["samples"]]
    assert (len(set(checked)), len(set(ended))) == (4, 6)
    assert not set(checked) & set(ended)


def test_the_kl_budget_ends_the_run(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    more = ["--kl.budget=0.0001", "--optim.learning-rate=0.01", "--kl.weight=0", "--run.max-steps=8"]
    assert ppo(qwen3, likes_e, tmp_path / "r", *more) == 0
    found = result_of(tmp_path / "r")
    assert found["stopped_early_at"] == found["steps"] < 8
    assert "the KL budget was spent" in (tmp_path / "r" / "summary.md").read_text()


def test_a_step_ends_early_at_its_own_kl(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    more = ["--clip.stop-kl=1e-6", "--optim.learning-rate=0.01", "--batch.minibatch=2"]
    assert ppo(qwen3, likes_e, tmp_path / "r", *more) == 0
    # One step of warm-up; then the second update of each step shows what the first has moved, and is the last.
    assert result_of(tmp_path / "r")["updates"] == 3 * 2


def test_any_model_of_transformers_can_be_trained(tokenizer: TextTokenizer, likes_e: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=96,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save(tmp_path / "llama")
    assert ppo(tmp_path / "llama", likes_e, tmp_path / "r", "--optim.learning-rate=0.01") == 0
    assert read_metrics(tmp_path / "r")[2]["ratio_error"] < 1e-4
    LlamaForCausalLM.from_pretrained(tmp_path / "r" / "model")


def test_bfloat16_samples_and_trains(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "r", "--run.dtype=bfloat16") == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_deepspeed_learns_as_the_plain_engine_does(qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    assert ppo(qwen3, likes_e, tmp_path / "torch") == 0
    assert ppo(qwen3, likes_e, tmp_path / "zero1", "--engine.zero=1") == 0
    runs = [read_metrics(tmp_path / name)[2:] for name in ("torch", "zero1")]
    for ours, theirs in zip(*runs, strict=True):
        for name in ("reward", "kl", "value_loss", "policy_loss"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    again = cut(tmp_path / "zero1", tmp_path / "cut")
    assert run(["rlhf", "ppo", "--resume", str(again)]) == 0


@pytest.mark.parametrize("zero", [0, 2])
def test_two_processes_train_together(zero: int, qwen3: Path, likes_e: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += ["-m", "fledge", "rlhf", "ppo", str(qwen3), f"--reward={likes_e}", "--config=tiny", *QUICK]
    done = subprocess.run(
        [*command, f"--engine.zero={zero}", "--out", str(tmp_path / "r")],
        capture_output=True,
        text=True,
        env=kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path / "r")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert result_of(tmp_path / "r")["episodes"] == 4 * 8
    assert lines[2]["ratio_error"] < 1e-4


def test_plain_prompts_are_gone_on_with(qwen3: Path, tmp_path: Path, likes_e: Path) -> None:
    seen = tmp_path / "seen.py"
    seen.write_text(
        "import json, pathlib\n"
        "def score(rows, answers):\n"
        f"    pathlib.Path({str(tmp_path / 'rows.json')!r}).write_text(json.dumps([r['prompt'] for r in rows]))\n"
        "    return [a.count('e') / (1 + len(a)) for a in answers]\n"
    )
    prompts = tmp_path / "prompts.jsonl"
    begun = [f"{name} went to" for name in ("Ann", "Ben", "Clara", "Dora", "Ernst", "Finn", "Gus", "Hal")]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in begun))
    others = [option for option in QUICK if not option.startswith("--prompts")]
    more = [f"--reward={seen}", f"--prompts={prompts}", "--plain-prompts", "--validation.share=0.3", *others]
    assert run(["rlhf", "ppo", str(qwen3), "--config=tiny", "--out", str(tmp_path / "r"), *more]) == 0
    assert set(json.loads((tmp_path / "rows.json").read_text())) <= set(begun)
    template = TextTokenizer.from_folder(tmp_path / "r" / "model").chat_template
    assert template is None  # whoever measures it later goes on with plain text as well
    compare = ["rlhf", "compare", str(tmp_path / "r"), f"--reward={likes_e}", "--part=all", "--best-of=2"]
    compare += ["--sampling.reference=20", "--sampling.policy=2", "--max-prompts=3", "--out", str(tmp_path / "c")]
    assert run(compare) == 0


# --- what users get wrong ---


def test_a_reward_that_raises_is_named_with_its_row(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def score(rows, answers):\n    return [1 / 0 for a in answers]\n")
    assert ppo(qwen3, file, tmp_path / "r") == 1
    assert "division by zero" in error_of(capsys)


def test_prompts_that_leave_no_room_are_an_error(
    qwen3: Path, likes_e: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "r", "--sampling.max-new-tokens=63") == 1
    assert "prompts fit into 1 tokens" in error_of(capsys)
    assert not (tmp_path / "r").exists()


def test_a_minibatch_that_does_not_divide_is_an_error(
    qwen3: Path, likes_e: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "r", "--batch.minibatch=3") == 1
    assert "batch.minibatch 3 does not divide rollout.episodes 8" in error_of(capsys)


def test_a_weight_of_zero_cannot_be_led_to_a_target(
    qwen3: Path, likes_e: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "r", "--kl.target=6", "--kl.weight=0") == 1
    assert "--kl.weight 0 can't be led to --kl.target" in error_of(capsys)


def test_adapters_in_several_processes_are_an_error(
    qwen3: Path, likes_e: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "r", "--lora.rank=2", "--engine.zero=1") == 1
    assert "--lora.rank: PPO with adapters runs on the plain engine" in error_of(capsys)


def test_dropout_in_adapters_is_an_error(
    qwen3: Path, likes_e: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(qwen3, likes_e, tmp_path / "r", "--lora.rank=2", "--lora.dropout=0.1") == 1
    assert "PPO needs the probabilities it sampled with" in error_of(capsys)


def test_a_changed_reward_is_not_resumed_and_not_run(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, resume = tmp_path / "mine.py", ["rlhf", "ppo", "--resume", str(tmp_path / "r"), "--run.max-steps=6"]
    file.write_text("def score(rows, answers):\n    return [0.0 for a in answers]\n")
    assert ppo(qwen3, file, tmp_path / "r") == 0
    began = file.read_text()
    file.write_text(f"raise SystemExit(7)\n{began}")
    assert run(resume) == 1
    assert f"its rewards changed since the run began; put it back, or start a new run: {file}" in error_of(capsys)
    file.write_text(began)
    assert run(resume) == 0


def test_a_reward_that_fails_later_loses_no_checkpoint(qwen3: Path, tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text(
        "calls = 0\n\ndef score(rows, answers):\n    global calls\n    calls += 1\n"
        "    return [float('nan') if calls > 4 else 0.5 for a in answers]\n"
    )
    assert ppo(qwen3, file, tmp_path / "r") == 1
    assert list((tmp_path / "r" / "checkpoints").glob("step-*"))
