"""The prompts of PPO, GRPO and compare: which are held out, and which can't be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.data import conversations
from fledge.errors import DataError
from fledge.tokens import TextTokenizer
from rlhf import prompts


def write(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(file)]


def test_the_same_prompts_are_held_out_as_in_fine_tuning(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    inputs = write(tmp_path, [{"prompt": f"Question {n}?", "completion": "Yes."} for n in range(60)])
    asked = prompts.read(inputs, tokenizer, 64, 0.3)
    taught = conversations.read(inputs, 0.3)
    expected = {conversation.prompt[0]["content"] for conversation in taught.held_out}
    assert {one.messages[0]["content"] for one in asked.held_out} == expected
    assert len(asked.train) + len(asked.held_out) == 60


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_of_two_prompts_one_is_trained_on_and_one_held_out(
    tmp_path: Path, tokenizer: TextTokenizer, share: float
) -> None:
    for number in range(8):
        found = prompts.read(write(tmp_path, [{"prompt": f"a{number}"}, {"prompt": "b"}]), tokenizer, 64, share)
        assert (len(found.train), len(found.held_out)) == (1, 1)


def test_a_prompt_that_stands_twice_but_for_case_and_spaces_is_one(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    found = prompts.read(
        write(tmp_path, [{"prompt": "Who  is it?"}, {"prompt": "who is it?"}, {"prompt": "b"}]), tokenizer, 64, 0.1
    )
    assert (len(found.train) + len(found.held_out), found.num_duplicates) == (2, 1)


def test_prompts_that_all_begin_alike_can_not_be_parted(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    rows = [{"messages": [*turns, {"role": "user", "content": text}]} for text in "ab"]
    with pytest.raises(
        DataError, match="2 prompts fit into 64 tokens, 0 are longer; at least two that begin otherwise"
    ):
        prompts.read(write(tmp_path, rows), tokenizer, 64, 0.1)


def test_a_prompt_that_the_template_refuses_is_a_bad_row(
    tmp_path: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    odd = TextTokenizer(tokenizer.inner, tokenizer.roles, template + str(tokenizer.chat_template))
    system = {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}
    found = prompts.read(write(tmp_path, [{"prompt": "a"}, system, {"prompt": "c"}]), odd, 64, 0.1, max_bad_share=0.4)
    assert len(found.train + found.held_out) == 2
    assert "rows.jsonl:2: the chat template refuses these messages: no system" in capsys.readouterr().err


def test_a_prompt_in_which_no_user_speaks_is_told(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"messages": [{"role": "system", "content": "Be kind."}]}, {"prompt": "a"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no message in it is a user's"):
        prompts.read(write(tmp_path, rows), tokenizer, 64, 0.1)
