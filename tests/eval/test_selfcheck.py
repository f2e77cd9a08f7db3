"""A model's promises: kept by ours, and broken ones found."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tokenizers import normalizers

from eval import invariances, selfcheck
from eval.config import SelfcheckConfig
from eval.invariances import Case, Measured
from fledge.cli import cli
from fledge.errors import DataError, RunFailed
from fledge.tokens import TextTokenizer

TEXTS = ["Mara keeps a goat by the river.", "The baker", "One day Tom went to the old mill and sang."]
CHAT = [[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": " Mara. "}]]


def test_our_models_pass_every_check(any_model: Path) -> None:
    done = CliRunner().invoke(
        cli, ["eval", "selfcheck", str(any_model), "--config", "tiny", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    checks = json.loads(done.stdout.strip().split("\n")[-1])["checks"]
    assert len(checks) == len(invariances.CHECKS)
    assert {name for name, told in checks.items() if told["passed"] is not True} == set()


class Averages(torch.nn.Module):
    """A language model that looks at the mean of the tokens so far, and of those to come if it is told to."""

    def __init__(self, heeds_padding: bool, is_causal: bool) -> None:
        super().__init__()
        self.heeds_padding, self.is_causal = heeds_padding, is_causal
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(300, 16)
        self.config = SimpleNamespace(max_position_embeddings=64)

    def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        embedded = self.embed(input_ids)
        is_real = attention_mask if self.heeds_padding else torch.ones_like(input_ids)
        summed, count = (embedded * is_real[..., None]).cumsum(1), is_real.cumsum(1).clamp(min=1)
        if not self.is_causal:
            summed, count = summed[:, -1:].expand_as(summed), count[:, -1:].expand_as(count)
        return SimpleNamespace(logits=summed / count[..., None] @ self.embed.weight.T)


def case(tokenizer: TextTokenizer, model: Any = None) -> Case:
    """Some texts for a model."""
    return Case(Path("nowhere"), model, tokenizer, TEXTS, CHAT, 40)


def fails(check: Any, which: Case) -> bool:
    """Whether a check finds too much of a difference."""
    outcome = check(which)
    assert isinstance(outcome, Measured)
    return outcome.value > outcome.limit


def test_a_right_model_passes_and_unheeded_padding_is_found(tokenizer: TextTokenizer) -> None:
    right, careless = case(tokenizer, Averages(True, True)), case(tokenizer, Averages(False, True))
    checks = [invariances.batch_size, invariances.padding_length, invariances.padding_side]
    assert [fails(check, right) for check in checks] == [False, False, False]
    assert [fails(check, careless) for check in checks] == [False, False, True]


def test_a_model_that_sees_the_future_is_found(tokenizer: TextTokenizer) -> None:
    blurred = case(tokenizer, Averages(False, False))
    assert fails(invariances.batch_size, blurred)
    assert fails(invariances.padding_length, blurred)


def test_a_step_that_depends_on_how_it_is_cut_is_found(tokenizer: TextTokenizer) -> None:
    assert not fails(invariances.accumulation, case(tokenizer, Averages(True, True)))
    # In one batch it sees the padding of the shorter texts.
    assert fails(invariances.accumulation, case(tokenizer, Averages(False, False)))


def test_a_tokenizer_that_changes_text_is_found(tokenizer: TextTokenizer) -> None:
    lowered = TextTokenizer(type(tokenizer.inner).from_str(tokenizer.inner.to_str()), tokenizer.roles)
    assert not fails(invariances.token_bytes, case(lowered))
    lowered.inner.normalizer = normalizers.Lowercase()
    assert fails(invariances.token_bytes, case(lowered))


def with_template(tokenizer: TextTokenizer, before: str, after: str) -> Case:
    """A case whose chat template was changed."""
    assert tokenizer.chat_template is not None
    assert before in tokenizer.chat_template
    return case(TextTokenizer(tokenizer.inner, tokenizer.roles, tokenizer.chat_template.replace(before, after)))


def test_a_template_that_changes_what_was_said_is_found(tokenizer: TextTokenizer) -> None:
    assert not fails(invariances.template_round_trip, case(tokenizer))
    shouting = with_template(
        tokenizer, "message['content'] + '<|im_end|>'", "message['content'] | upper + '<|im_end|>'"
    )
    assert fails(invariances.template_round_trip, shouting)


def test_an_end_of_turn_that_is_not_learned_is_found(tokenizer: TextTokenizer) -> None:
    assert not fails(invariances.end_token_supervised, case(tokenizer))
    endless = with_template(
        tokenizer,
        "{{- message['content'] + '<|im_end|>' -}}\n{%- endgeneration -%}",
        "{{- message['content'] -}}\n{%- endgeneration -%}{{- '<|im_end|>' -}}",
    )
    assert fails(invariances.end_token_supervised, endless)


def test_without_a_template_its_checks_do_not_apply(tokenizer: TextTokenizer) -> None:
    bare = case(TextTokenizer(tokenizer.inner, tokenizer.roles))
    assert invariances.template_round_trip(bare) == "the tokenizer has no chat template"
    unmarked = case(TextTokenizer(tokenizer.inner, tokenizer.roles, "{{ messages[0]['content'] }}"))
    assert "does not mark what the assistant says" in str(invariances.end_token_supervised(unmarked))


def test_a_failed_check_ends_with_its_cause(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template.replace("['content']", "['content'] | trim"), "utf-8")
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{text} ", "completion": f" {text}"} for text in TEXTS]
    rows.write_text("\n".join(json.dumps({"messages": pair(line)}) for line in lines), encoding="utf-8")
    with pytest.raises(RunFailed, match=r"1 of 12 checks failed: template_round_trip: the template strips or changes"):
        selfcheck.run(SelfcheckConfig(model=str(folder), data=[str(rows)], max_tokens=16))
    assert RunFailed.exit_code == 3


def pair(row: dict[str, str]) -> list[dict[str, str]]:
    """A question and its answer as messages."""
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def test_as_many_rows_are_read_as_asked_for_without_data() -> None:
    assert len(selfcheck._read(SelfcheckConfig(model="x", rows=20))[0]) == 20


def test_too_little_data_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_text("Only one text.", encoding="utf-8")
    with pytest.raises(DataError, match=r"one\.txt: fewer than two texts"):
        selfcheck.run(SelfcheckConfig(model=str(model_folder), data=[str(file)]))


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Anna has a dog."}\n' * 4 + "{broken\n" * 4)
    assert len(selfcheck._read(SelfcheckConfig(model="x", data=[str(rows)], rows=3))[0]) == 3
