"""`fledge tokenizer show`: what is printed."""

import json
from pathlib import Path

import pytest

from fledge.__main__ import run
from fledge.tokens import TextTokenizer
from tokenizer.show import _printable


@pytest.fixture
def folder(tmp_path: Path, small_tokenizer: TextTokenizer) -> str:
    small_tokenizer.save(tmp_path / "tok")
    return str(tmp_path / "tok")


def test_text_is_shown_as_tokens_ids_and_totals(
    folder: str, small_tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokenizer", "show", folder, "--text", "the\ncaf\u00e9 \u597d", "--json"]) == 0
    _, tokens, ids, totals, result = capsys.readouterr().out.splitlines()
    assert tokens.replace("|", "").startswith("the\\ncaf\u00e9 \\xe5\\xa5\\xbd")
    assert [int(number) for number in ids.split()] == small_tokenizer.encode("the\ncaf\u00e9 \u597d")
    assert totals.endswith("bytes/token")
    assert json.loads(result)["bytes"] == 13


def test_learned_tokens_of_a_chat_are_marked(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": " of"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": messages}]))
    for name in ("chat.jsonl", "chat.json"):
        assert run(["tokenizer", "show", folder, "--chat", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert "[ of]|[<|im_end|>]|\\n" in out
        assert "[the]" not in out
        assert "2 learned" in out


def test_long_texts_are_cut_and_say_so(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "show", folder, "--text", "1 2 3 4 5 6 7 8 9", "--max-tokens", "4"]) == 0
    assert "more (--max-tokens)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}', "chat.jsonl:1: no known format (fields: text)"),
        ("{", "chat.jsonl:1: broken JSON"),
        ("\n", "no conversations in it"),
    ],
)
def test_what_is_no_conversation_is_named(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "chat.jsonl").write_text(content)
    assert run(["tokenizer", "show", folder, "--chat", str(tmp_path / "chat.jsonl")]) == 1
    assert message in capsys.readouterr().err


def test_nothing_to_show_is_an_error(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "show", folder]) == 1
    assert "nothing to show: give --text" in capsys.readouterr().err


def test_pieces_are_printable() -> None:
    assert _printable(b" a\n") == " a\\n"
    assert _printable("\u4f60".encode()[:2]) == "\\xe4\\xbd"
