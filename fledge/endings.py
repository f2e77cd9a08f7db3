"""The ids that end what a model writes."""

import json
from pathlib import Path

from fledge.tokens import END_OF_TURN, TextTokenizer


def declared_ids(folder: Path) -> list[int]:
    """The ids that a model folder's generation_config.json names as ends; none where it names none."""
    try:
        said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return [number for number in (said if isinstance(said, list) else [said]) if isinstance(number, int)]


def end_ids(folder: Path, tokenizer: TextTokenizer, of_turn: bool = False) -> tuple[int, ...]:
    """The ids at which a model stops: the document's end, those of its folder, and in a conversation the turn's."""
    names = (END_OF_TURN, tokenizer.roles.get("eos_token")) if of_turn else ()
    turn = [tokenizer.special_ids[name] for name in names if name in tokenizer.special_ids]
    return tuple(dict.fromkeys([tokenizer.end_of_text_id, *turn, *declared_ids(folder)]))
