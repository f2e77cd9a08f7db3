"""Numbers as people read them; texts of strangers as they can do no harm."""

import io
import sys

import pytest
from markdown_it import MarkdownIt

from fledge import console

HOSTILE = "a\x1b]0;OWNED\x07b\x9b31mc\u202egnp.exe\u2066d\re\x7f"
SHOWN = "a\\x1b]0;OWNED\\x07b\\x9b31mc\\u202egnp.exe\\u2066d\\re\\x7f"
HARMLESS = (
    "caf\u00e9\u00a0\u597d\u3000\U0001f469\u200d\U0001f4bb \u05d0\u200f\ttab\nline"  # joiners and spaces of scripts
)


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (950, "950"),
        (999.6, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (999_400, "999k"),
        (4.56e6, "4.56M"),
        (2e9, "2G"),
    ],
)
def test_a_count_is_short_and_rounds_into_the_next_unit(value: float, told: str) -> None:
    assert console.format_count(value) == told


def test_texts_of_strangers_do_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console.note(HOSTILE)
    console.result(HOSTILE)
    console.write(HARMLESS)
    assert capsys.readouterr().err == f"{SHOWN}\n"
    assert terminal.getvalue() == f"{SHOWN}\n{HARMLESS}"


def test_what_goes_to_a_file_is_written_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.write(HOSTILE)
    assert capsys.readouterr().out == HOSTILE


def test_no_cell_breaks_out_of_its_table() -> None:
    cells = [["ham", "1.5"], ["a|b\\|c\\\\|", "2"], ["x | 9 |\n\n# Forged\n\n| y", "-3"], ["end\\", ""]]
    tokens = MarkdownIt().enable("table").parse(console.table(cells, ["la|bel", "n"]))
    assert {token.type.split("_")[0] for token in tokens} <= {"table", "thead", "tbody", "tr", "th", "td", "inline"}
    read = ["".join(part.content for part in t.children or []) for t in tokens if t.type == "inline"]
    cells[2][0] = "x | 9 | # Forged | y"
    assert read == [cell for row in (["la|bel", "n"], *cells) for cell in row]
