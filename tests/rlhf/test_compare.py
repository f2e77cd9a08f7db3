"""Runs side by side: what is sampled and measured, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from fledge import lineage
from fledge.cli import cli
from fledge.errors import ConfigError, DataError, ModelError, RunError
from fledge.models import folder
from fledge.models.generation import Sampling
from fledge.tokens import TextTokenizer
from rlhf import contestants, drawn, prompts
from rlhf.config import CompareConfig
from rlhf.drawn import Judges
from rlhf.policy import Policy
from rlhf.prompts import Asked
from rlhf.scoring import Reward

TEMPERATURE = 0.7
SETTINGS = {"reward": "length:6", "sampling": {"max_new_tokens": 6, "temperature": TEMPERATURE}}

LENGTH = Reward("length", None, lambda rows, answers: [float(len(answer)) for answer in answers])


@pytest.fixture(scope="module")
def asked(tokenizer: TextTokenizer) -> list[Asked]:
    """Three prompts of different lengths."""
    texts = ["Who?", "Where is the mill?", "Tell me about the old mill and the goat."]
    return [
        Asked({"prompt": text}, [], prompts.ids_of([{"role": "user", "content": text}], tokenizer)) for text in texts
    ]


@pytest.fixture(scope="module")
def make_policy(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A function from a seed to the folder of a model near `qwen3`."""

    def make(seed: int) -> Path:
        model = folder.load_model(qwen3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        path = tmp_path_factory.mktemp(f"policy-{seed}") / "model"
        path.mkdir()
        folder.save_model(model, path)
        TextTokenizer.from_folder(qwen3).save(path)
        return path

    return make


@pytest.fixture
def make_run(qwen3: Path, make_policy: Callable[[int], Path]) -> Callable[..., str]:
    """A function that makes a run of a policy."""

    def make(path: Path, seed: int, settings: dict[str, Any] = SETTINGS, parent: Path | None = qwen3) -> str:
        path.mkdir(parents=True)
        make_policy(seed).rename(path / "model")
        record = {"command": "rlhf ppo", "parents": [lineage.parent(parent, "model")] if parent else []}
        (path / "lineage.json").write_text(json.dumps(record), encoding="utf-8")
        (path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return str(path)

    return make


# --- answers ---


def test_how_many_are_written_at_once_changes_no_answer(
    qwen3: Path, tokenizer: TextTokenizer, asked: list[Asked]
) -> None:
    model, sampling = folder.load_model(qwen3), Sampling(max_new_tokens=5)
    few, many = (drawn.draw(model, asked, 20, sampling, tokenizer, at_once, "x") for at_once in (1, 64))
    assert [[c.ids for c in row] for row in few] == [[c.ids for c in row] for row in many]
    assert all(len({tuple(c.ids) for c in row}) == 20 for row in few)


def test_kl_is_that_of_the_distributions(
    qwen3: Path, make_policy: Callable[[int], Path], tokenizer: TextTokenizer, asked: list[Asked]
) -> None:
    # Of answers of one token the KL can be summed over the vocabulary.
    reference, policy = folder.load_model(qwen3), folder.load_model(make_policy(0))
    ids = torch.tensor([asked[1].ids])
    with torch.no_grad():
        p, q = ((model(ids)[0, -1] / TEMPERATURE).log_softmax(-1) for model in (policy, reference))
    expected = float((p.exp() * (p - q)).sum())
    sampling = Sampling(max_new_tokens=1, temperature=TEMPERATURE)
    written = drawn.draw(policy, asked[1:2], 2000, sampling, tokenizer, 512, "policy")
    found = drawn.judge(asked[1:2], written, Judges(LENGTH, None), Policy(reference, TEMPERATURE), "policy")
    assert expected > 0.02
    assert found.kl.mean() == pytest.approx(expected, abs=4 * found.kl.std() / 2000**0.5)


def test_kl_of_an_answer_is_summed_over_its_tokens(
    qwen3: Path, make_policy: Callable[[int], Path], tokenizer: TextTokenizer, asked: list[Asked]
) -> None:
    reference, policy = folder.load_model(qwen3), folder.load_model(make_policy(0))
    sampling = Sampling(max_new_tokens=6, temperature=TEMPERATURE)
    written = drawn.draw(policy, asked, 2, sampling, tokenizer, 64, "policy")
    found = drawn.judge(asked, written, Judges(LENGTH, None), Policy(reference, TEMPERATURE), "policy")
    for row, (one, answers) in enumerate(zip(asked, written, strict=True)):
        for place, answer in enumerate(answers):
            expected, ids = 0.0, list(one.ids)
            for token in answer.ids:
                with torch.no_grad():
                    p, q = (
                        (model(torch.tensor([ids]))[0, -1] / TEMPERATURE).log_softmax(-1)[token]
                        for model in (policy, reference)
                    )
                expected += float(p - q)
                ids.append(token)
            assert found.kl[row, place] == pytest.approx(expected, abs=1e-4)


def test_the_reference_is_at_no_distance_from_itself(qwen3: Path, tokenizer: TextTokenizer, asked: list[Asked]) -> None:
    model, sampling = folder.load_model(qwen3), Sampling(max_new_tokens=5)
    written = drawn.draw(model, asked, 4, sampling, tokenizer, 64, "x")
    found = drawn.judge(asked, written, Judges(LENGTH, LENGTH), Policy(model), "x")
    np.testing.assert_allclose(found.kl, 0, atol=1e-5)
    assert found.gold is not None
    assert found.reward.tolist() == found.gold.tolist() == [[len(answer.text) for answer in row] for row in written]


def test_an_answer_that_does_not_end_loses_reward_but_no_gold(
    qwen3: Path, tokenizer: TextTokenizer, asked: list[Asked]
) -> None:
    stops = Sampling(max_new_tokens=2, stop_ids=tuple(range(100)))
    written = drawn.draw(folder.load_model(qwen3), asked, 8, stops, tokenizer, 64, "x")
    found = drawn.judge(asked, written, Judges(LENGTH, LENGTH, 5.0), None, "x")
    assert found.gold is not None
    assert 0 < found.has_stopped.mean() < 1
    np.testing.assert_array_equal(found.gold - found.reward, np.where(found.has_stopped, 0, 5))


# --- the command ---


def invoke(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["rlhf", "compare", *arguments, "--device", "cpu", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.strip().split("\n")[-1]))


SMALL = ["--sampling.reference", "32", "--sampling.policy", "4", "--best-of", "2", "--best-of", "4"]


def test_runs_are_compared_by_what_they_were_trained_on(
    make_run: Callable[..., str], qwen3: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"prompts": ["village:instructions#40"], "validation": {"share": 0.2}}
    runs = [make_run(tmp_path / name, seed, settings) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    found = invoke(*runs, "--gold", "length:3", "--out", str(out), *SMALL)
    assert [line["name"] for line in found["policies"]] == ["reference", "best of 2", "best of 4", *runs]
    assert [line["method"] for line in found["policies"]] == ["reference", *["best-of-n"] * 2, *["ppo"] * 2]
    assert (found["reference"], found["reward"]) == (str(qwen3), "length:6")
    assert all(line["kl"]["value"] > 0.01 for line in found["policies"][1:])
    written = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(written) == found["prompts"] < 20
    assert list(written[0]["answers"]) == ["reference", *runs]
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert f"| {runs[0]} " in (out / "summary.md").read_text(encoding="utf-8")
    frozen = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert frozen["sampling"]["temperature"] == TEMPERATURE
    assert [parent["kind"] for parent in lineage.read(out)["parents"]] == ["reference", "policy", "policy"]


def test_prompts_that_a_run_accepted_are_accepted(make_run: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Tell of {n}"}) + "\n" for n in range(12)) + "{}\n" * 4)
    settings = SETTINGS | {"prompts": [str(file)], "validation": {"share": 0.5}}
    runs = [make_run(tmp_path / name, 0, settings | more) for name, more in (("a", {}), ("b", {"max_bad_share": 0.5}))]
    assert invoke(*runs, "--out", str(tmp_path / "out"), *SMALL)["prompts"] >= 2


def test_a_model_alone_shows_what_can_be_gained_and_equal_runs_are_equal(qwen3: Path, tmp_path: Path) -> None:
    arguments = ["--reference", str(qwen3), "--reward", "length:6", "--prompts", "village:instructions#8"]
    arguments += ["--part", "all", "--sampling.max-new-tokens", "4", *SMALL]
    first, again = (invoke(*arguments, "--out", str(tmp_path / name)) for name in "ab")
    assert first["policies"] == again["policies"]
    assert first["policies"][2]["gain"]["value"] > first["policies"][1]["gain"]["value"] > 0


# --- who can be compared ---


def resolved(runs: list[str], **settings: Any) -> CompareConfig:
    return contestants.resolved(CompareConfig(runs=runs, device="cpu", **settings), contestants.find(runs))


def test_a_run_of_several_seeds_is_several_policies(make_run: Callable[..., str], tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"several/seed-{seed}", seed)
    (tmp_path / "several/seeds.json").write_text('{"seeds": [0, 1]}', encoding="utf-8")
    found = contestants.find([str(tmp_path / "several")])
    assert [Path(one.name).name for one in found] == ["seed-0", "seed-1"]


def test_options_go_before_what_runs_say_and_of_shares_the_smallest_is_safe(
    make_run: Callable[..., str], tmp_path: Path
) -> None:
    runs = [
        make_run(tmp_path / f"{share}", 0, SETTINGS | {"prompts": ["p.jsonl"], "validation": {"share": share}})
        for share in (0.3, 0.2)
    ]
    settings = resolved(runs, reward="village", unfinished_penalty=0)
    assert settings.unfinished_penalty == 0
    assert (settings.reward, settings.prompts, settings.held_out_share) == ("village", ["p.jsonl"], 0.2)


def test_runs_from_different_models_are_refused(
    make_run: Callable[..., str], gpt2: Path, qwen3: Path, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 1, parent=gpt2)]
    message = rf"began with different models \({runs[0]} with {qwen3}, {runs[1]} with {gpt2}\)"
    with pytest.raises(RunError, match=message):
        contestants.reference("", contestants.find(runs))
    assert contestants.reference(str(qwen3), contestants.find(runs)) == qwen3


def test_a_reference_that_changed_is_refused(make_run: Callable[..., str], gpt2: Path, tmp_path: Path) -> None:
    parent = tmp_path / "sft"
    parent.mkdir()
    for file in gpt2.iterdir():
        (parent / file.name).write_bytes(file.read_bytes())
    run = make_run(tmp_path / "a", 0, parent=parent)
    (parent / "generation_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"sft: changed since .*a was trained from it; put it back"):
        contestants.reference("", contestants.find([run]))


def test_a_model_of_no_run_needs_a_named_reference(make_policy: Callable[[int], Path]) -> None:
    path = str(make_policy(0))
    with pytest.raises(RunError, match=rf"{path}: .*which model it began with; name that with --reference"):
        contestants.reference("", contestants.find([path]))


def test_a_run_that_is_no_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "judge/model").mkdir(parents=True)
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}
    (tmp_path / "judge/model/config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"judge/model: holds a Qwen3ForSequenceClassification, no policy"):
        contestants.find([str(tmp_path / "judge")])


def test_other_tokens_are_refused(make_policy: Callable[[int], Path], qwen3: Path, tokenizer: TextTokenizer) -> None:
    path = make_policy(0)
    TextTokenizer(tokenizer.inner, None, "{{ messages }}").save(path)
    with pytest.raises(ModelError, match=rf"its chat template differs from that of the reference {qwen3}, so there"):
        contestants.check_tokenizers(contestants.find([str(path)]), qwen3, tokenizer)
    content = json.loads(tokenizer.inner.to_str())
    content["added_tokens"] = content["added_tokens"][:1]
    TextTokenizer(type(tokenizer.inner).from_str(json.dumps(content)), None, tokenizer.chat_template).save(path)
    with pytest.raises(ModelError, match=r"its tokenizer differs from that of the reference"):
        contestants.check_tokenizers(contestants.find([str(path)]), qwen3, tokenizer)


def test_settings_that_runs_do_not_share_must_be_given(make_run: Callable[..., str], tmp_path: Path) -> None:
    colder = SETTINGS | {"sampling": {"max_new_tokens": 6, "temperature": 0.2}}
    runs = [make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 1, colder)]
    message = rf"differ in sampling.temperature \({runs[0]}: 0.7, {runs[1]}: 0.2\); choose one with --sampling.temp"
    with pytest.raises(ConfigError, match=message):
        resolved(runs, prompts=["x"])
    with pytest.raises(ConfigError, match="none of the runs says which prompts to compare by; give --prompts"):
        resolved(runs[:1])


@pytest.mark.parametrize("judge", ["reward", "gold"])
def test_code_that_a_run_names_must_be_typed(make_run: Callable[..., str], judge: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0, SETTINGS | {"prompts": ["x"], judge: "a/notes.py"})
    with pytest.raises(ConfigError, match=rf"{run}: its {judge} is Python code; .* with --{judge} a/notes.py"):
        resolved([run])
    assert getattr(resolved([run], **{judge: "a/notes.py"}), judge) == "a/notes.py"


def test_best_of_more_than_half_of_the_answers_is_refused() -> None:
    with pytest.raises(ValidationError, match="--best-of 200: from 2 to 128, half of the reference's answers"):
        CompareConfig(best_of=[200])


def test_nothing_to_compare_is_told() -> None:
    with pytest.raises(RunError, match="name runs to compare, or a model alone with --reference"):
        contestants.reference("", [])


@pytest.mark.parametrize(
    ("reward", "part", "message"),
    [
        ("length:6", "held-out", r"village:instructions#8: of \d prompts 1 is held out, and a comparison needs two"),
        ("{}/nan.py", "all", r"nan.py: nan, no finite number, for the answer"),
    ],
)
def test_what_can_not_be_measured_is_told(reward: str, part: str, message: str, qwen3: Path, tmp_path: Path) -> None:
    (tmp_path / "nan.py").write_text("def score(rows, answers):\n    return [float('nan')] * len(rows)\n")
    arguments = ["--reference", str(qwen3), "--reward", reward.format(tmp_path), "--part", part]
    arguments += ["--prompts", "village:instructions#8", "--sampling.max-new-tokens", "4", "--device", "cpu"]
    arguments += ["--held-out-share", "0.01", "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match=message):
        CliRunner().invoke(cli, ["rlhf", "compare", *arguments], catch_exceptions=False)
