"""Names of village data, and plain files of it."""

import hashlib
import json
from pathlib import Path

import pytest

from fledge.errors import DataError
from fledge.village.spec import KINDS, Spec, is_spec, parse_spec, rows, write

# sha256 of the first 300 rows of the hamlet; a change is another version, never the same one.
FROZEN = {
    "stories": "26ec03913814982d",
    "instructions": "066f850e1d7df482",
    "messages": "047251233d147371",
    "preferences": "c37b1438855e3f20",
    "minimal-pairs": "8dc22b43be0695af",
    "canaries": "c18859fe3480fe67",
}


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("village:hamlet", Spec("hamlet", 0, "stories", "train")),
        ("village:town/messages", Spec("town", 0, "messages", "train")),
        ("village:instructions", Spec("hamlet", 0, "instructions", "train")),
        ("village:minimal-pairs:test#7", Spec("hamlet", 0, "minimal-pairs", "test", count=7)),
        ("village:village-12/stories:test", Spec("village", 12, "stories", "test")),
        (
            "village:hamlet/preferences?length_bias=0.2&temperature=2#5",
            Spec("hamlet", 0, "preferences", "train", (("length_bias", 0.2), ("temperature", 2.0)), 5),
        ),
    ],
)
def test_spec_is_read(text: str, spec: Spec) -> None:
    assert is_spec(text)
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("village:city/stories", "no world 'city'; there is hamlet, village, town"),
        ("village:hamlet/poems", "no kind 'poems'; there is stories, instructions"),
        ("village:hamlet/stories:dev", "no part 'dev'; there is train, test"),
        ("village:hamlet/stories?length_bias=1", "no dial 'length_bias'; there is none"),
        ("village:hamlet/preferences?bias=1", "no dial 'bias'; there is temperature, length_bias, label_noise"),
        ("village:preferences?temperature=1.2.3", "village data is named village:WORLD"),
        ("village:preferences?temperature=.", "village data is named village:WORLD"),
        ("village:messages?comparisons=7", "comparisons is 7, must be from 0 to 1"),
        ("village:instructions?manners=9", "manners is 9, must be from 0 to 1"),
        ("village:Hamlet", "village data is named village:WORLD"),
    ],
)
def test_wrong_spec_says_what_there_is(text: str, message: str) -> None:
    with pytest.raises(DataError, match="village") as error:
        parse_spec(text)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_as_many_rows_as_asked_with_the_same_columns(kind: str) -> None:
    found = list(rows(f"village:hamlet/{kind}:test#8"))
    assert len(found) == 8
    assert len({tuple(row) for row in found}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_world(kind: str) -> None:
    assert list(rows(f"village:hamlet-1/{kind}#8")) != list(rows(f"village:hamlet/{kind}#8"))


def test_written_file_holds_the_rows_and_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "messages.jsonl"
    assert write("village:messages#5", path) == 5
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(rows("village:messages#5"))
    with pytest.raises(DataError, match="exists already"):
        write("village:messages#5", path)


def test_rows_of_every_kind_are_frozen() -> None:
    found = {
        kind: hashlib.sha256(repr(list(rows(f"village:hamlet/{kind}#300"))).encode()).hexdigest()[:16] for kind in KINDS
    }
    assert found == FROZEN
