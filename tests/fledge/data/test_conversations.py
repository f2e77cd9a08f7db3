"""Conversations from files: each format, what can't be used, duplicates, weights, the held-out part."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.data import conversations
from fledge.data.conversations import Conversation
from fledge.errors import DataError

QUESTION, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}


def write(folder: Path, name: str, rows: list[Any]) -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def asked(number: int) -> dict[str, str]:
    return {"prompt": f"Question {number}", "completion": "An answer."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER]},
        {"instruction": "Who?", "input": "", "output": "Me."},
        {"instruction": "Who?", "response": "Me."},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
        {"prompt": "Who?", "completion": " Me.\n"},
        {"prompt": "Below is an instruction. Do it.\n\n### Instruction:\nWho?\n\n### Response:\n", "response": "Me."},
        {"prompt": [QUESTION], "completion": [ANSWER]},
    ],
    ids=lambda row: "+".join(row),
)
def test_every_format_gives_the_same_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    file = write(tmp_path, "a.jsonl", [row])
    source = conversations.src.expand([file])[0]
    assert list(conversations.of_source(source)) == [Conversation(f"{file}:1", [QUESTION, ANSWER])]


def test_an_input_stands_below_the_instruction(tmp_path: Path) -> None:
    for row in (
        {"instruction": "Translate.", "input": "Ja", "output": "Yes"},
        {
            "prompt": "Below is an instruction\n\n### Instruction:\nTranslate.\n\n### Input:\nJa\n\n### Response:",
            "completion": "Yes",
        },
    ):
        source = conversations.src.expand([write(tmp_path, "a.jsonl", [row])])[0]
        (found,) = conversations.of_source(source)
        assert isinstance(found, Conversation)
        assert found.messages[0]["content"] == "Translate.\n\nJa"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([QUESTION], "the conversation ends with the user; nothing to learn after that"),
        ([ANSWER, QUESTION], "roles out of order: message 1 is of 'assistant', expected 'user'"),
        ([QUESTION, QUESTION, ANSWER], "roles out of order: message 2 is of 'user', expected 'assistant'"),
        ([QUESTION, {"role": "tool", "content": "x"}], "message 2 is of 'tool', expected 'assistant'"),
        ([QUESTION, {"role": "assistant", "content": " "}], "message 2 (assistant) is empty"),
        ([QUESTION, {"role": "assistant"}], "message 2 (assistant) has no text in 'content'"),
        ([{"content": "x"}], "message 1 has no role"),
        ([], "no list of messages"),
    ],
)
def test_what_can_not_be_learned_is_named(tmp_path: Path, messages: list[Any], reason: str) -> None:
    file = write(tmp_path, "a.jsonl", [{"messages": [QUESTION, ANSWER]}, {"messages": messages}])
    with pytest.raises(DataError) as error:
        conversations.read([file], 0.1)
    assert str(error.value).startswith(f"{file}:2: ")
    assert reason in str(error.value)
    assert "1 of 2 rows are bad" in str(error.value)


def test_few_bad_rows_are_passed_over_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "a.jsonl", [*map(asked, range(9)), {"text": "x"}])
    read = conversations.read([file], 0.2, max_bad_share=0.1)
    assert (len(read.train) + len(read.held_out), read.rejects) == (9, 1)
    told = capsys.readouterr().err
    assert f"{file}:1: read as prompt_completion: user: Question 0 | assistant: An answer." in told
    assert f'{file}:10: expected {{"prompt": "...", "completion": "..."}}' in told


def test_of_a_long_first_row_the_beginning_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "a.jsonl", [{"messages": [QUESTION, ANSWER] * 3000}])
    assert len(list(conversations.of_source(conversations.src.expand([file])[0]))) == 1
    told = "user: Who? | assistant: Me. | user: Who? | assistant: Me. | ... 5996 more\n"
    assert capsys.readouterr().err == f"{file}:1: read as messages: {told}"


def test_rows_of_no_format_and_of_two_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.jsonl:1: no known format \(fields: text\)"):
        conversations.read([write(tmp_path, "a.jsonl", [{"text": "x"}])], 0.1)
    both = asked(1) | {"messages": [QUESTION, ANSWER]}
    with pytest.raises(DataError, match="may be read as messages or prompt_completion; choose with --format"):
        conversations.read([write(tmp_path, "b.jsonl", [both])], 0.1)
    assert conversations.read(
        [
            str(tmp_path / "b.jsonl"),
            write(tmp_path, "c.jsonl", [{"messages": [{"role": "user", "content": "Other?"}, ANSWER]}]),
        ],
        0.1,
        "messages",
    ).train
    with pytest.raises(DataError, match="--format nope: not known; there are: auto, alpaca"):
        conversations.read([str(tmp_path / "b.jsonl")], 0.1, "nope")


def test_rows_that_stand_twice_are_dropped_across_files(tmp_path: Path) -> None:
    one = write(tmp_path, "a.jsonl", [asked(1), asked(2)])
    two = write(tmp_path, "b.jsonl", [{"prompt": "question  1 ", "completion": " An answer."}, asked(3)])
    read = conversations.read([one, two], 0.1)
    assert read.duplicates == 1
    assert len(read.train) + len(read.held_out) == 3


def test_answers_that_differ_in_case_or_indentation_are_others(tmp_path: Path) -> None:
    answers = ["if x:\n    y()\nz()", "if x:\n    y()\n    z()", "IF X:\n    y()\n    z()"]
    path = write(tmp_path, "a.jsonl", [asked(1), *({"prompt": "Write it.", "completion": a} for a in answers)])
    read = conversations.read([path], 0.1)
    assert (read.duplicates, len(read.train) + len(read.held_out)) == (0, 4)


def test_a_prompt_stands_on_one_side_whatever_else_there_is(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n // 2}", "completion": f"Answer {n}"} for n in range(200)]
    read = conversations.read([write(tmp_path, "a.jsonl", rows)], 0.2)
    sides = [{c.messages[0]["content"] for c in side} for side in (read.train, read.held_out)]
    assert not sides[0] & sides[1]
    assert 0.1 < len(read.held_out) / 200 < 0.3
    fewer = conversations.read([write(tmp_path, "b.jsonl", rows[:100])], 0.2)
    assert {c.messages[0]["content"] for c in fewer.held_out} <= sides[1]


def test_the_prompts_that_are_held_out_stay_the_same_in_later_versions() -> None:
    assert conversations.prompt_hash([QUESTION, ANSWER]) == 16500361547914014090  # another would mix old and new runs


def test_weights_are_the_shares_of_the_rows(tmp_path: Path) -> None:
    parts = [(0.7, [Conversation("a", [QUESTION | {"content": str(n)}, ANSWER]) for n in range(10)])]
    parts.append((0.3, [Conversation("b", [QUESTION | {"content": f"b{n}"}, ANSWER]) for n in range(90)]))
    mixed = conversations.mix(parts)
    assert [sum(c.where == side for c in mixed) for side in "ab"] == [70, 30]
    assert {sum(c is row for c in mixed) for row in parts[0][1]} == {7}


def test_which_rows_are_repeated_does_not_hang_on_their_order() -> None:
    rows = [Conversation("a", [{"role": "user", "content": str(n)}, ANSWER]) for n in range(10)]
    other = [Conversation("b", [{"role": "user", "content": str(n)}, ANSWER]) for n in range(10, 20)]
    found = [conversations.mix([(0.6, part), (0.4, other)]) for part in (rows, rows[::-1])]
    asked = [sorted(c.messages[0]["content"] for c in mixed) for mixed in found]
    assert asked[0] == asked[1]


def test_a_file_whose_name_ends_like_a_weight_has_none(tmp_path: Path) -> None:
    (tmp_path / "a:2").touch()
    assert conversations.split_weight(f"{tmp_path}/a:2") == (f"{tmp_path}/a:2", None)


def test_weights_are_read_off_the_inputs(tmp_path: Path) -> None:
    assert conversations.split_weight("a.json:0.7") == ("a.json", 0.7)
    assert conversations.split_weight("village:instructions") == ("village:instructions", None)
    assert conversations.split_weight("village:instructions:2") == ("village:instructions", 2.0)
    with pytest.raises(DataError, match="the weight must be above 0"):
        conversations.split_weight("a.json:0")
    file = write(tmp_path, "a.jsonl", [asked(1)])
    with pytest.raises(DataError, match="some have a weight and some have none"):
        conversations.read([f"{file}:1", file], 0.1)


def test_a_single_prompt_can_not_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on; give at least two different prompts"):
        conversations.read([write(tmp_path, "a.jsonl", [asked(1)])], 0.1)


def test_the_first_that_are_held_out_come_from_all_files(tmp_path: Path) -> None:
    files = [write(tmp_path, f"{n}.jsonl", [asked(100 * n + k) for k in range(100)]) for n in range(2)]
    first = conversations.read(files, 0.3).held_out[:20]
    assert {c.where.split(":")[0] for c in first} == set(files)


def test_a_turn_of_nobody_known_is_told(tmp_path: Path) -> None:
    turns = [{"from": ["human"], "value": "Who?"}, {"from": "gpt", "value": "Me."}]
    with pytest.raises(DataError, match=r"turn 1 is from \['human'\]; known: human"):
        conversations.read([write(tmp_path, "a.jsonl", [{"conversations": turns}])], 0.1)
