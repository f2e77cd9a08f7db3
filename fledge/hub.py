"""Hub names: what is taken for `owner/name` on the Hugging Face hub, and what is a mistyped path."""

import difflib
import os
import re
import sys
from pathlib import Path

from fledge.errors import ModelError, first_line

# Hub names without an owner, as old as the hub; every other bare word is taken for a path.
_OWNERLESS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
_PATH_LIKE_OWNERS = ("runs", "configs", "data", "shared", "models", "checkpoints", "tokenizer", "out")
_FILE_SUFFIX = re.compile(r"\.(txt|md|jsonl?|gz|zst|csv|tsv|parquet|x?html?|ya?ml|bin|safetensors)$")


def looks_like_hub_name(name: str) -> bool:
    """Whether something that is no existing path can only be a hub name, `owner/name`.

    Anything that starts like a path (`./`, `/`, `runs/`, a folder that exists) or ends like a file is a
    mistyped path and is never looked up.
    """
    if name in _OWNERLESS:
        return not Path(name).exists()
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or Path(name).exists():
        return False
    owner = name.split("/")[0]
    return not _FILE_SUFFIX.search(name) and owner not in _PATH_LIKE_OWNERS and not Path(owner).exists()


def suggestion(path: str | Path) -> str:
    """`; did you mean X?` with an existing neighbour of a mistyped path, or nothing."""
    path = Path(path)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, 1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def folder(path: str | Path, patterns: list[str], wanted: str) -> Path:
    """A path that exists as it is; else the files of a hub name that fit the patterns, fetched.

    Args:
        wanted: what kind of folder to give, for the error.
    Raises:
        ModelError: it is neither, or the hub can't give it.
    """
    if Path(path).exists():
        return Path(path)
    if not looks_like_hub_name(str(path)):
        raise ModelError(f"{path}: no such folder{suggestion(path) or f'; give a {wanted}'}")
    go_online()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except Exception as error:  # offline, unknown and forbidden all have classes of their own
        raise ModelError(
            f"{path}: no such folder here, and the hub can't give it ({first_line(error)}); "
            "check the name and the connection, or download it and give its folder"
        ) from None


def go_online() -> None:
    """Let the Hugging Face libraries use the network: called only where the user gave a hub name."""
    os.environ["HF_HUB_OFFLINE"] = "0"
    for module in ("huggingface_hub.constants", "datasets.config"):  # read the variable when imported
        if module in sys.modules:
            vars(sys.modules[module])["HF_HUB_OFFLINE"] = False
