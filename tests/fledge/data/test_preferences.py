"""Preferences in all the forms they come in, and what is wrong with some."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.data import conversations, preferences
from fledge.data.preferences import Pair
from fledge.data.rows import Row
from fledge.errors import DataError

ROW = {"prompt": "How many?", "chosen": "Three.", "rejected": "Many."}
ASKED = [{"role": "user", "content": "How many?"}]


def pair_of(values: dict[str, Any]) -> Pair:
    return preferences.of_row(Row("a.jsonl", 1, values))


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def says(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


@pytest.mark.parametrize(
    "values",
    [
        ROW,
        ROW | {"prompt": ASKED},
        {"prompt": ASKED, "chosen": [says("Three.")], "rejected": [says("Many.")]},
        {"chosen": [*ASKED, says("Three.")], "rejected": [*ASKED, says("Many.")]},
        ROW | {"chosen": [*ASKED, says("Three.")], "rejected": [*ASKED, says("Many.")]},
        {"instruction": "How many?", "input": "", "output": "3", "chosen": "Three.", "rejected": "Many."},
        {
            "conversations": [{"from": "human", "value": "How many?"}],
            "chosen": {"from": "gpt", "value": "Three."},
            "rejected": {"from": "gpt", "value": "Many."},
        },
        {"chosen": "\n\nHuman: How many?\n\nAssistant: Three.", "rejected": "\n\nHuman: How many?\n\nAssistant: Many."},
        ROW | {"prompt": "\n\nHuman: How many?\n\nAssistant:"},
    ],
    ids=["text", "messages", "turns", "whole", "both", "instruction", "sharegpt", "dialogue", "hh-prompt"],
)
def test_one_pair_reads_the_same_in_every_form(values: dict[str, Any]) -> None:
    found = pair_of(values)
    assert (found.prompt, found.chosen, found.rejected) == (ASKED, "Three.", "Many.")
    assert found.row == values


def test_dialogues_share_all_but_their_last_answer() -> None:
    before = "\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: How many?\n\nAssistant:"
    found = pair_of({"chosen": before + " Three.\n\nNo more.", "rejected": before + " Many."})
    assert [m["content"] for m in found.prompt] == ["Hello", "Yes?", "How many?"]
    assert found.chosen == "Three.\n\nNo more."


def test_a_system_message_comes_first_and_an_instructions_input_below_it() -> None:
    found = pair_of({"system": "Be brief.", "instruction": "Count", "input": "a b", "chosen": "2", "rejected": "b"})
    assert [(m["role"], m["content"]) for m in found.prompt] == [("system", "Be brief."), ("user", "Count\n\na b")]


def test_strength_is_read_where_there_is_one() -> None:
    strengths = [pair_of(ROW | {"preference_strength": value}).strength for value in (0.5, "2", None)]
    assert strengths == [0.5, 2.0, None]


def test_no_prompt_stands_on_both_sides_and_conversations_hold_out_the_same(tmp_path: Path) -> None:
    rows = [ROW | {"prompt": f"{n} {case}?", "chosen": str(n)} for n in range(40) for case in ("AB", "ab")]
    found = preferences.read([write(tmp_path / "a.jsonl", rows)], 0.3)
    sides = [{pair.prompt[0]["content"].lower() for pair in side} for side in (found.train, found.held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40
    assert 4 <= len(sides[1]) <= 20
    answered = [{"prompt": row["prompt"], "completion": "x"} for row in rows]
    others = conversations.read([write(tmp_path / "b.jsonl", answered)], 0.3)
    assert {c.prompt[0]["content"].lower() for c in others.held_out} == sides[1]


def test_pairs_that_stand_twice_are_taken_once(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"prompt": "how  many?"}, ROW | {"chosen": "Four."}, ROW | {"prompt": "Who?"}]
    found = preferences.read([write(tmp_path / "a.jsonl", rows)], 0.1)
    assert (len(found.train) + len(found.held_out), found.duplicates) == (3, 1)


def test_village_preferences_keep_what_is_known_of_them() -> None:
    found = preferences.read(["village:hamlet/preferences#40"], 0.2)
    assert all(0 < pair.row["p_chosen"] < 1 for pair in found.held_out)


def test_a_few_bad_rows_are_passed_over_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW | {"prompt": f"{n}?"} for n in range(9)] + [ROW | {"chosen": ""}]
    found = preferences.read([write(tmp_path / "a.jsonl", rows)], 0.2, max_bad_share=0.1)
    assert found.rejects == 1
    assert "a.jsonl:10: 'chosen' is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ROW | {"rejected": " Three. "}, "'chosen' and 'rejected' are the same answer"),
        (ROW | {"chosen": " "}, "'chosen' is empty"),
        (ROW | {"prompt": " "}, "the prompt is empty"),
        (ROW | {"rejected": 3}, "'rejected' is neither text nor messages"),
        (
            {"prompt": "How many?", "chosen": "Three."},
            'no field \'rejected\'; expected {"prompt": "...", "chosen": "...", "rejected": "..."}; '
            "fields: prompt, chosen",
        ),
        ({"chosen": "Three.", "rejected": "Many."}, "no prompt; expected"),
        ({"chosen": [says("Three.")], "rejected": [says("Many.")]}, "no prompt; expected"),
        (
            {"chosen": "\n\nHuman: A\n\nAssistant: B", "rejected": "\n\nHuman: C\n\nAssistant: D"},
            "'chosen' and 'rejected' answer different prompts",
        ),
        (
            ROW | {"prompt": [*ASKED, *ASKED]},
            "'chosen': roles out of order: message 2 is of 'user', expected 'assistant'",
        ),
        (ROW | {"chosen": [{"role": "assistant"}]}, "a message has no role or no text in 'content'"),
        (ROW | {"chosen": ["Three."]}, "a message has no role or no text in 'content'"),
        (ROW | {"preference_strength": "high"}, "'preference_strength' is 'high'; expected a number from 0 on"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        preferences.read([write(tmp_path / "a.jsonl", [ROW, values])], 0.1)
    assert f"a.jsonl:2: {message}" in str(error.value)
    assert "1 of 2 rows are bad" in str(error.value)


def test_one_prompt_alone_is_too_little(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on; give pairs for at least two prompts"):
        preferences.read([write(tmp_path / "a.jsonl", [ROW])], 0.1)


def test_an_answer_may_be_chosen_over_several_others(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "chosen": "Yes", "rejected": bad} for prompt in ("a", "b", "c") for bad in ("No", "Or")]
    found = preferences.read([write(tmp_path / "a.jsonl", [*rows, rows[0]])], 0.3)
    assert (len(found.train) + len(found.held_out), found.duplicates) == (6, 1)
