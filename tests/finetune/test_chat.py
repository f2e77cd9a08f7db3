"""`fledge finetune chat`: one answer, pipes, commands, trimming, errors."""

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import chat
from finetune.chat import Talk
from finetune.config import ChatConfig
from fledge.__main__ import run
from fledge.errors import DataError
from fledge.models import generation
from fledge.tokens import TextTokenizer
from tokenizer.chat import render


def talk_to(model: Path, **settings: Any) -> Talk:
    return Talk(ChatConfig(model=str(model), temperature=0, max_new_tokens=8, device="cpu", **settings))


def test_a_prompt_gets_one_answer(qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", str(qwen3), "--prompt", "Who?", "--config=tiny", "--json"]) == 0
    *_, answer = capsys.readouterr().out.splitlines()
    messages = json.loads(answer)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"]


def test_the_answer_is_the_samplers(qwen3: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    talk = talk_to(qwen3)
    talk.say("Who?")
    ids = render(tokenizer, [{"role": "user", "content": "Who?"}], add_generation_prompt=True).ids
    (text,) = generation.complete(talk._loaded.model, tokenizer, [ids], talk.sampling)
    assert capsys.readouterr().out == text + "\n"
    assert talk.messages[-1] == {"role": "assistant", "content": text}


def test_an_answer_stops_at_the_end_of_turn(
    qwen3: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = talk_to(qwen3)
    weight, end = talk._loaded.model.head_weight, tokenizer.special_ids["<|im_end|>"]
    with torch.no_grad():
        weight[:] = 0.0
        weight[end] = 100 * torch.sign(talk._loaded.model.hidden(torch.tensor([[1, 2, 3]]))[0, -1])
    talk.say("Who?")
    assert "<|im_end|>" not in capsys.readouterr().out
    assert talk.sampling.stop_ids[0] == end


def interrupted(*arguments: Any) -> Iterator[str]:
    """An answer amid which Ctrl-C is pressed."""
    yield "half of"
    raise KeyboardInterrupt


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_wrong_usage(qwen3: Path, capsys: pytest.CaptureFixture[str], prompt: str) -> None:
    assert run(["chat", str(qwen3), "--prompt", prompt]) == 2
    assert "--prompt: is empty; say something, or leave it out for a conversation" in capsys.readouterr().err


def test_lines_of_a_pipe_are_turns_and_commands(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "talk.json"
    typed = [
        "/system S",
        "a \\",
        "b",
        '"""c',
        "/d",
        '"""',
        "/temperature 0.5",
        "/temperature hot",
        f"/save {saved}",
        "/reset",
        f"/load {saved}",
        "/nonsense",
        "/load nowhere.json",
        "/quit",
        "never said",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    config = ChatConfig(model=str(qwen3), max_new_tokens=3, temperature=0, device="cpu")
    said = chat.run(config)["messages"]
    assert said == json.loads(saved.read_text())["messages"]
    assert [m["content"] for m in said if m["role"] != "assistant"] == ["S", "a \nb", "c\n/d"]
    told = capsys.readouterr().err
    assert "error: /temperature hot: expected a number, such as 0.7" in told
    assert "error: nowhere.json: no saved conversation" in told
    assert "/reset             forget the conversation" in told


def test_the_oldest_turns_go_when_the_context_is_full(qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = talk_to(qwen3, system="Be kind.")
    for number in range(6):
        talk.say(f"message {number}")
    assert "the context of 64 tokens is full" in capsys.readouterr().err
    assert talk.messages[0]["content"] == "Be kind."
    assert talk.messages[-2]["content"] == "message 5"
    assert len(talk.messages) < 12


def test_a_message_longer_than_the_context_is_refused_and_alone_forgotten(qwen3: Path) -> None:
    talk = talk_to(qwen3)
    talk.say("Hi")
    before = list(talk.messages)
    with pytest.raises(DataError, match=r"the message has \d+ tokens .* the context of 64 holds 56 beside"):
        talk.say("word " * 100)
    assert talk.messages == before


def test_bytes_that_are_no_text_are_answered(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/system caf\udce9\ncaf\udce9\n"))  # as a pipe of Latin-1 arrives
    said = chat.run(ChatConfig(model=str(qwen3), max_new_tokens=3, device="cpu"))["messages"]
    assert [m["content"] for m in said[:2]] == ["caf?", "caf?"]


HALVED = '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}'


@pytest.mark.parametrize("content", [HALVED, "[" * 100_000])
def test_a_file_that_is_no_conversation_leaves_the_one_there_is(qwen3: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "saved.json").write_text(content)
    talk = talk_to(qwen3, system="S")
    with pytest.raises(DataError, match=r"saved\.json: no saved conversation"):
        talk.load(str(tmp_path / "saved.json"))
    assert talk.messages == [{"role": "system", "content": "S"}]


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generation, "stream_text", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\nAgain?\n"))
    said = chat.run(ChatConfig(model=str(qwen3), max_new_tokens=8, device="cpu"))["messages"]
    assert capsys.readouterr().out == "half of\nhalf of\n"
    assert [m["content"] for m in said] == ["Who?", "half of", "Again?", "half of"]


def test_a_single_answer_that_is_interrupted_is_no_result(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generation, "stream_text", interrupted)
    assert run(["chat", str(qwen3), "--prompt=Who?", "--json"]) == 130
    told = capsys.readouterr()
    assert told.out == "half of\n"
    assert told.err.endswith("error: interrupted\n")


def test_sigterm_ends_a_conversation(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def readline(self, size: int | None = -1) -> str:
            signal.raise_signal(signal.SIGTERM)
            return "never said"

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(SystemExit, match="130"):
        run(["chat", str(qwen3)])
    assert signal.getsignal(signal.SIGTERM) == before


def test_saving_overwrites_nothing(qwen3: Path, tmp_path: Path) -> None:
    file = tmp_path / "thesis.md"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"thesis\.md: exists already and is never overwritten; choose another name"):
        talk_to(qwen3).save(str(file))
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_model_without_template_and_a_base_model_are_told(
    qwen3: Path, tokenizer: TextTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk_to(qwen3)
    assert "was never taught to end an answer; is it a base model?" in capsys.readouterr().err
    for file in qwen3.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert run(["finetune", "chat", str(tmp_path), "--prompt=x"]) == 1
    assert f"{tmp_path}: no chat template, so it knows no turns; teach it with" in capsys.readouterr().err


def test_a_classifier_is_refused(qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((qwen3 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"architectures": ["Qwen3ForSequenceClassification"]}))
    assert run(["finetune", "chat", str(tmp_path), "--prompt=x"]) == 1
    assert "a classifier, which labels texts; use fledge finetune predict" in capsys.readouterr().err
