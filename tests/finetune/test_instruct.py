"""`fledge finetune instruct`: masks, packing, new tokens, adapters, exact resume, results, errors."""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from finetune import supervised, vocabulary
from finetune.supervised import Example
from fledge import hub
from fledge.__main__ import run
from fledge.data.conversations import Conversation
from fledge.errors import ConfigError, DataError, ModelError
from fledge.models import adapters, classifier, folder
from fledge.models.loss import IGNORED
from fledge.tokens import TextTokenizer

if TYPE_CHECKING:
    from conftest import Hub

QUICK = [
    "--run.threads=1",
    "--run.max-steps=6",
    "--run.checkpoint-every=2",
    "--validation.every=2",
    "--validation.examples=8",
    "--answers.max-new-tokens=4",
    "--answers.at-end=2",
    "--pack=128",
    "--batch.examples=2",
    "--optim.learning-rate=0.01",
    "--data=village:hamlet/instructions",
]


def instruct(base: Path, out: Path, *more: str) -> int:
    return run(["finetune", "instruct", str(base), "--config=tiny", "--out", str(out), *QUICK, *more])


def weights(path: Path) -> bytes:
    return (path / "model" / "model.safetensors").read_bytes()


def cut(folder: Path) -> None:
    """Make `cut` of the run `whole`: as if it had been killed after step 4."""
    shutil.copytree(folder / "whole", folder / "cut")
    for gone in ("checkpoints/step-000006", "model"):
        shutil.rmtree(folder / "cut" / gone)
    (folder / "cut" / "result.json").unlink()


def result_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "result.json").read_text()))


def talks(count: int) -> list[Conversation]:
    return [
        Conversation(
            f"here:{n}",
            [
                {"role": "user", "content": "Who is " + "very " * (n % 5) + f"{n}?"},
                {"role": "assistant", "content": f"It is {n}" + " indeed" * (n % 3)},
            ],
        )
        for n in range(count)
    ]


@pytest.fixture
def examples(tokenizer: TextTokenizer) -> list[Example]:
    return supervised.tokenise(tokenizer, talks(20), 64).examples


@pytest.fixture(scope="session")
def trained(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps."""
    out = tmp_path_factory.mktemp("runs") / "chat"
    assert instruct(qwen3, out) == 0
    return out


# --- what is learned ---


def test_labels_are_the_answer_and_its_end(tokenizer: TextTokenizer, examples: list[Example]) -> None:
    learned = [label for label in examples[3]["labels"] if label != IGNORED]
    assert tokenizer.decode(learned, keep_special=True) == "It is 3<|im_end|>"


def test_typed_markers_are_text(tokenizer: TextTokenizer) -> None:
    typed = [Conversation("a:1", [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "x"}])]
    (example,) = supervised.tokenise(tokenizer, typed, 64).examples
    assert example["input_ids"].tolist().count(tokenizer.special_ids["<|im_end|>"]) == 2


def test_what_is_too_long_keeps_its_whole_answers_and_is_counted(tokenizer: TextTokenizer) -> None:
    turns = [m for talk in talks(4) for m in talk.messages]
    one, all_turns = [Conversation("a:1", turns[:2])], [Conversation("a:1", turns)]
    (first,) = supervised.tokenise(tokenizer, one, 1000).examples
    whole = supervised.tokenise(tokenizer, all_turns, 1000)
    assert (whole.num_cut, whole.num_dropped) == (0, 0)
    length = len(whole.examples[0]["input_ids"])
    end = tokenizer.special_ids["<|im_end|>"]
    for limit in range(len(first["input_ids"]), length - 1):  # the last token, a line end, is never learned
        cut = supervised.tokenise(tokenizer, all_turns, limit)
        (example,) = cut.examples
        assert len(example["input_ids"]) <= limit
        assert example["labels"][-1] == end  # half an answer would teach not to stop
        assert (cut.num_cut, cut.num_dropped) == (1, 0)
    with pytest.raises(DataError, match="nothing in these 2 conversations would be learned"):
        supervised.tokenise(tokenizer, [*one, *all_turns], len(first["input_ids"]) - 2)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "nothing"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "everything"),
    ],
)
def test_nothing_or_everything_to_learn_is_refused(tokenizer: TextTokenizer, template: str, what: str) -> None:
    odd = TextTokenizer(tokenizer.inner, tokenizer.roles, template)
    with pytest.raises(DataError, match=rf"here:0: {what} in these 5 conversations would be learned"):
        supervised.tokenise(odd, talks(5), 64)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_the_loss_is_transformers_own(kind: str, examples: list[Example], request: pytest.FixtureRequest) -> None:
    model = folder.load_by_transformers(request.getfixturevalue(kind))
    (batch,) = (supervised.collate([examples[4]]),)
    theirs = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    ours = supervised.loss(model, batch) / supervised.num_targets(batch)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_packed_equals_alone(kind: str, examples: list[Example], request: pytest.FixtureRequest) -> None:
    model = folder.load_by_transformers(request.getfixturevalue(kind))
    rows = supervised.pack(examples, 100)
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    alone = supervised.mean_loss(model, examples, 1)
    assert supervised.mean_loss(model, rows, 3) == pytest.approx(alone, abs=1e-5)
    assert supervised.mean_loss(model, examples, 7) == pytest.approx(alone, abs=1e-5)  # padding, too
    supervised.check_packing(model, max(rows, key=lambda row: len(row["seq_lengths"])))


@pytest.mark.parametrize("row_tokens", [0, 100])
def test_a_token_and_its_label_take_eight_bytes(examples: list[Example], row_tokens: int) -> None:
    rows = supervised.pack(examples, row_tokens)
    held = sum(row["input_ids"].nbytes + row["labels"].nbytes for row in rows)
    assert held == 8 * sum(sum(row["seq_lengths"]) for row in rows)


def test_an_architecture_that_leaks_is_refused(qwen3: Path, examples: list[Example]) -> None:
    model = folder.load_by_transformers(qwen3)
    forward = model.forward

    def leaking(input_ids: torch.Tensor, position_ids: torch.Tensor, **others: Any) -> Any:
        return forward(input_ids=input_ids, **others)

    model.forward = leaking
    row = max(supervised.pack(examples, 100), key=lambda row: len(row["seq_lengths"]))
    with pytest.raises(ModelError, match=r"leak into each other in this architecture .* use --pack 0"):
        supervised.check_packing(model, row, tolerance=1e-6)


# --- tokens that are new to the parent ---


def foreign(tokenizer: TextTokenizer, template: str | None = None) -> TextTokenizer:
    """A tokenizer as a hub model might have it: no turn tokens."""
    inner = json.loads(tokenizer.inner.to_str())
    kept = [t for t in inner["added_tokens"] if t["content"] == "<|endoftext|>"]
    inner["added_tokens"] = kept
    for name in ("<|im_start|>", "<|im_end|>", "<|pad|>", "<|reserved_0|>"):
        number = inner["model"]["vocab"].pop(name, None)
        if number is not None:
            inner["model"]["vocab"][f"unused{number}"] = number
    remade = type(tokenizer.inner).from_str(json.dumps(inner))
    return TextTokenizer(remade, {"eos_token": "<|endoftext|>"}, template)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_begin_as_the_mean_and_are_trained_with_adapters(
    qwen3: Path, tokenizer: TextTokenizer, tied: bool
) -> None:
    config = transformers.AutoConfig.from_pretrained(qwen3)
    config.tie_word_embeddings = tied
    model = transformers.AutoModelForCausalLM.from_config(config)
    old = foreign(tokenizer)
    new = vocabulary.for_chat(old)
    ids = vocabulary.new_ids(old, new)
    assert [new.decode([i], keep_special=True) for i in ids] == ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    mean = model.get_input_embeddings().weight[: min(ids)].mean(0)
    vocabulary.make_room(model, ids, new.vocab_size)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    assert all(len(layer.weight) == new.vocab_size for layer in layers)
    assert torch.allclose(layers[0].weight[ids], mean.expand(3, -1), atol=1e-6)
    before = [layer.weight.detach().clone() for layer in layers]

    turns = vocabulary.template_ids(new)
    tuned = adapters.add_lora(model, rank=2, alpha=None, dropout=0.0, targets=["all-linear"], seed=0, token_ids=turns)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.5)
    rows = supervised.tokenise(new, talks(6), 64).examples
    for _ in range(3):
        optimizer.zero_grad()
        batch = supervised.collate(rows)
        (supervised.loss(tuned, batch) / supervised.num_targets(batch)).backward()
        optimizer.step()
    prompts = [row["input_ids"] for row in rows[:2]]
    written = adapters.write(tuned, prompts)
    merged = tuned.merge_and_unload()
    for layer, old_weight in zip((merged.get_input_embeddings(), merged.get_output_embeddings()), before, strict=True):
        changed = (layer.weight != old_weight).any(1).nonzero().flatten().tolist()
        assert changed == turns
    proof = adapters.compare(written, adapters.write(merged, prompts))
    assert proof["merge_max_logit_difference"] < 1e-4
    assert proof["merge_same_greedy_tokens"]


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", ["<|im_end|>", "<|endoftext|>"]),
        ("{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n", ["<|im_end|>", "<|endoftext|>"]),
        ("<|im_start|>{{ m.role }}: {{ m.content }}\n\n", ["<|endoftext|>"]),
    ],
)
def test_an_answer_ends_where_the_template_ends_a_turn(
    tokenizer: TextTokenizer, template: str, ends: list[str]
) -> None:
    theirs = TextTokenizer(tokenizer.inner, tokenizer.roles, f"{{% for m in messages %}}{template}{{% endfor %}}")
    assert vocabulary.stop_ids(theirs) == tuple(tokenizer.special_ids[name] for name in ends)


def test_a_template_without_generation_blocks_is_replaced_aloud(
    tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vocabulary.for_chat(tokenizer) is tokenizer
    theirs = foreign(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert vocabulary.for_chat(theirs).chat_template == tokenizer.chat_template
    told = capsys.readouterr().err
    assert "fledge's (ChatML) takes its place" in told
    assert "new special tokens: <|im_start|>, <|im_end|>, <|pad|>" in told


# --- runs ---


def test_a_run_leaves_a_model_that_transformers_loads(trained: Path) -> None:
    result = result_of(trained)
    assert result["validation_loss"] < result["validation_loss_before"] - 0.3
    model = transformers.AutoModelForCausalLM.from_pretrained(trained / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(trained / "model")
    assert "{%- generation -%}" in theirs.chat_template
    assert theirs.convert_ids_to_tokens(model.generation_config.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    assert {(s["step"], s["prompt"]) for s in samples} >= {(2, "Once upon a time"), (6, "Once upon a time")}
    assert "## Lineage" in (trained / "model" / "README.md").read_text()
    assert "held-out loss on the answers" in (trained / "summary.md").read_text()


def test_the_saved_model_has_the_loss_that_was_measured(trained: Path, tokenizer: TextTokenizer) -> None:
    from finetune.config import InstructConfig
    from finetune.instruct import _prepare
    from fledge import config

    settings = config.load(InstructConfig, trained / "config.yaml")
    held_out = _prepare(settings).held_out
    model = folder.load_by_transformers(trained / "model")
    assert supervised.mean_loss(model, held_out, 8) == pytest.approx(result_of(trained)["validation_loss"], abs=1e-5)


def test_what_has_not_learned_has_the_loss_of_its_parent_in_bfloat16_too(qwen3: Path, tmp_path: Path) -> None:
    assert instruct(qwen3, tmp_path / "r", "--run.dtype=bfloat16", "--optim.learning-rate=1e-12") == 0
    result = result_of(tmp_path / "r")
    assert result["validation_loss"] == pytest.approx(result["validation_loss_before"], rel=1e-6)


@pytest.mark.parametrize("lora", [[], ["--lora.rank=2", "--lora.dropout=0.1"]], ids=["full", "lora"])
def test_continued_after_a_kill_the_model_is_the_same_to_the_bit(qwen3: Path, tmp_path: Path, lora: list[str]) -> None:
    assert instruct(qwen3, tmp_path / "whole", *lora) == 0
    cut(tmp_path)
    assert run(["finetune", "instruct", "--resume", str(tmp_path / "cut")]) == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    if lora:
        assert result_of(tmp_path / "cut")["merge_same_greedy_tokens"]
        assert result_of(tmp_path / "cut")["merge_max_logit_difference"] < 1e-4


def test_a_run_on_the_hub_goes_on_from_the_commits_with_which_it_began(
    qwen3: Path, tmp_path: Path, hub_server: "Hub"
) -> None:
    def commit(answer: str) -> None:
        rows = [{"prompt": f"Who is {n}?", "completion": f"{answer} {n}."} for n in range(40)]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        hub_server.put("owner/talks", {"train.jsonl": lines}, "datasets", cardData={"license": "cc-by-4.0"})
        files = {file.name: file.read_bytes() for file in qwen3.iterdir()} | {"tokenizer_notes.json": answer.encode()}
        hub_server.put("owner/base", files, cardData={"license": "other", "license_name": "own"})

    commit("It is")
    options = [option for option in QUICK if not option.startswith("--data")]
    start = ["finetune", "instruct", "owner/base", "--config=tiny", "--data=owner/talks", *options]
    assert run([*start, "--out", str(tmp_path / "whole")]) == 0
    card = (tmp_path / "whole" / "model" / "README.md").read_text()
    assert "- data licences: owner/talks: cc-by-4.0\n" in card
    assert re.search(r"- model: `owner/base` at commit [0-9a-f]{12} \(sha256 [0-9a-f]{16}, licence own\)\n", card)

    cut(tmp_path)
    commit("No,")
    hub._known.clear()
    assert run(["finetune", "instruct", "--resume", str(tmp_path / "cut")]) == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_parent_or_data_that_changed_is_not_resumed(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    rows = [{"prompt": f"Who is {n}?", "completion": f"It is {n}."} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [option for option in QUICK if not option.startswith("--data")]
    start = ["finetune", "instruct", str(qwen3), "--config=tiny", f"--data={data}", *options]
    assert run([*start, "--out", str(tmp_path / "r")]) == 0
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "new", "completion": "row"}) + "\n")
    assert run(["finetune", "instruct", "--resume", str(tmp_path / "r"), "--run.max-steps=8"]) == 1
    assert "its data changed since the run began" in capsys.readouterr().err


def test_an_adapter_target_that_matches_nothing_is_named(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert instruct(qwen3, tmp_path / "r", "--lora.rank=2", "--lora.targets=nope") == 1
    assert "--lora.targets nope: no layer of the model is named so; there are: down_proj," in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_parent_that_can_not_be_sampled_from_leaves_no_run(
    tokenizer: TextTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.MambaConfig(vocab_size=tokenizer.vocab_size, hidden_size=8, num_hidden_layers=1, state_size=4)
    model = transformers.MambaForCausalLM(config)
    model.save_pretrained(tmp_path / "mamba")
    tokenizer.save(tmp_path / "mamba")
    assert instruct(tmp_path / "mamba", tmp_path / "run") == 1
    assert "MambaForCausalLM: has no cache of keys and values" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="MambaForCausalLM: PEFT puts no adapters on it"):
        adapters.add_lora(model, rank=2, alpha=None, dropout=0.0, targets=["all-linear"], seed=0)


def test_without_packing_the_same_examples_are_learned(qwen3: Path, tmp_path: Path) -> None:
    assert instruct(qwen3, tmp_path / "r", "--pack=0", "--run.max-steps=2") == 0
    assert result_of(tmp_path / "r")["validation_loss"] < result_of(tmp_path / "r")["validation_loss_before"]


def test_prompts_that_leave_no_room_for_an_answer_are_not_asked(qwen3: Path, tmp_path: Path) -> None:
    long = "the dog sees the mill and " * 2
    rows = [{"prompt": f"{n} {long}", "completion": "yes"} for n in range(20)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [*(o for o in QUICK if not o.startswith("--data")), f"--data={tmp_path}/d.jsonl", "--lora.rank=2"]
    start = ["finetune", "instruct", str(qwen3), "--config=tiny", f"--answers.prompts={long * 5}"]
    assert run([*start, *options, "--out", str(tmp_path / "r")]) == 0
    assert result_of(tmp_path / "r")["answers"] == 0
    assert result_of(tmp_path / "r")["merge_same_greedy_tokens"]


def test_within_how_many_tokens_answers_stop_is_what_they_were_given(qwen3: Path, tmp_path: Path) -> None:
    assert instruct(qwen3, tmp_path / "r", "--answers.max-new-tokens=500", "--run.max-steps=1") == 0
    given = result_of(tmp_path / "r")["max_new_tokens"]
    assert 32 <= given < 64  # of a context of 64
    assert f"stop by themselves within {given} tokens" in (tmp_path / "r" / "summary.md").read_text()


def test_a_classifier_is_no_parent(qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier.from_base(qwen3, ["ham", "spam"]).save(tmp_path)
    for stage in (["finetune", "instruct"], ["rlhf", "dpo"]):
        data = "village:instructions#40" if "instruct" in stage else "village:preferences#40"
        assert run([*stage, str(tmp_path), f"--data={data}", "--config=tiny", "--out", str(tmp_path / "r")]) == 1
        assert "holds a Qwen3ForSequenceClassification, not a language model" in capsys.readouterr().err


def test_a_conversation_that_the_template_refuses_is_named(tokenizer: TextTokenizer) -> None:
    template = "{% if messages[0].content == 'Who is 3?' %}{{ raise_exception('no 3') }}{% endif %}"
    odd = TextTokenizer(tokenizer.inner, tokenizer.roles, template + str(tokenizer.chat_template))
    one = talks(5)[3]
    one.messages[0]["content"] = "Who is 3?"
    with pytest.raises(DataError, match=rf"{one.where}: the chat template refuses these messages: no 3"):
        supervised.tokenise(odd, [one], 64)


def test_a_length_above_the_context_is_refused(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert instruct(gpt2, tmp_path / "r", "--max-length=65") == 1
    assert "--max-length 65: the model's context is 64 tokens" in capsys.readouterr().err
