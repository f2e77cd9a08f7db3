"""docs/ppo-details.md names code and tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ppo-details.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_page_names_is_there(file: str, name: str) -> None:
    is_test = Path(file).name.startswith("test_")
    folder = "" if "/" in file else "tests/rlhf" if is_test else "rlhf"
    text = (ROOT / folder / file).read_text(encoding="utf-8")
    for part in filter(None, name.split(".")):
        found = rf"^def test_{part}\(" if is_test else rf"^ *(def|class) {part}\b|^{part} = "
        assert re.search(found, text, re.MULTILINE), f"{file}: no {part}"
