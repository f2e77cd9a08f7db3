"""Hub names: what is taken for `owner/name` on the Hugging Face hub, and at which commit; what is a mistyped path."""

import contextlib
import difflib
import errno
import fnmatch
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fledge import console
from fledge.errors import DataError, FledgeError, ModelError, first_line

# What is read of a repository. The * of these patterns crosses folders.
_READ = {
    "model": ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.bpe", "*.model"],
    "tokenizer": ["tokenizer*", "vocab.json", "merges.txt", "*_tokens*.json", "chat_template*"],
}
# The same weights in other layouts; and folders, of which only model/ and tokenizer/ are looked into.
_NOT_READ = ["consolidated*", "[!mt]*/*", "*/*/*"]
_SNAPSHOT = re.compile(r".*/models--([^/]+)/snapshots/([0-9a-f]{40})(?:/(\w+))?")
_TIMEOUT_S = 10  # for the first answer; the library would wait without end
# Value of HF_HUB_OFFLINE until a hub name is given; to the libraries it is like the "1" of a user's own, which stands.
OFFLINE = "On"
# Commit, and licence where it is known, of each name: looked up once a process, so all that is read is of one state.
_known: dict[tuple[str, str], dict[str, str]] = {}

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


def folder(path: str | Path, kind: Literal["model", "tokenizer"], wanted: str) -> Path:
    """A path that exists as it is; else what is read of the model or tokenizer of a hub name, fetched.

    Args:
        wanted: what kind of folder to give, for the error.
    Raises:
        ModelError: it is neither, or neither the hub nor its cache can give it.
    """
    if Path(path).exists():
        return Path(path)
    name = str(path)
    if not looks_like_hub_name(name):
        raise ModelError(f"{path}: no such folder{suggestion(path) or f'; give a {wanted}'}")
    go_online()
    from huggingface_hub import snapshot_download

    files: dict[str, Any] = {"allow_patterns": _READ[kind], "ignore_patterns": _NOT_READ}
    revision = _known.get(("model", name), {}).get("commit")
    try:
        known = facts(name, "model")
    except ModelError as error:
        try:
            found = Path(snapshot_download(name, local_files_only=True, **files))
        except Exception:  # not in the cache either
            raise error from None
        console.warn(f"{error}. Its copy in the cache is used, commit {found.name}")
        known = _known["model", name] = {}
    else:
        try:
            found = Path(snapshot_download(name, revision=revision, **files))
        except Exception as error:  # the library and its transports have dozens of classes
            raise ModelError(refusal(name, error)) from None
    known["commit"] = found.name
    return found


def facts(name: str, kind: Literal["model", "dataset"]) -> dict[str, str]:
    """The `commit` that a hub name stands for and, where its card states one, its `licence`.

    Raises:
        ModelError, DataError: the hub can't be reached, or does not know it.
    """
    if (kind, name) not in _known:
        go_online()
        from huggingface_hub import HfApi

        console.note(f"{name}: no folder here, so looked up on the hub")
        try:
            info = getattr(HfApi(), f"{kind}_info")(name, timeout=_TIMEOUT_S)
        except Exception as error:
            kinds: dict[str, type[FledgeError]] = {"model": ModelError, "dataset": DataError}
            raise kinds[kind](refusal(name, error)) from None
        card = info.card_data.to_dict() if info.card_data else {}
        licence = card.get("license_name") or card.get("license")
        _known[kind, name] = {"commit": info.sha} | ({"licence": str(licence)} if licence else {})
    return _known[kind, name]


def refusal(name: str, error: Exception) -> str:
    """What to tell the user where the hub does not give something."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"{name}: gated; ask for access on its page of the hub, then set HF_TOKEN or log in with `hf auth login`"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{name}: no such path here, and HF_HUB_OFFLINE forbids to ask the hub; unset it"
    if isinstance(error, errors.RevisionNotFoundError):  # only of a lineage's commits
        return f"{name}: the commit with which the run began is gone from the hub; start a new run"
    is_unknown = isinstance(error, errors.RepositoryNotFoundError)
    if is_unknown or (isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401):
        return (
            f"{name}: no such path here, and the hub knows none that you may read; check the name, "
            "and HF_TOKEN or `hf auth login` if it is private"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{constants.HF_HOME}: no space left for {name}; make room, or set HF_HOME to a folder on another disk"
    return (
        f"{name}: no such path here, and the hub can't give it ({first_line(error)}); check the name and the connection"
    )


def origin(folder: Path) -> dict[str, str]:
    """Of a folder that the hub gave: its name as `path`, `commit`, `licence` if known, `part` if below the top."""
    match = _SNAPSHOT.fullmatch(folder.as_posix())
    if match is None:
        return {}
    found = {"path": match[1].replace("--", "/"), "commit": match[2]} | ({"part": match[3]} if match[3] else {})
    return _known.get(("model", found["path"]), {}) | found


def cached(origin: Mapping[str, str]) -> Path:
    """Where the cache has, or would have, what `origin` tells of."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = "models--" + origin["path"].replace("/", "--")
    return Path(HF_HUB_CACHE, repository, "snapshots", origin["commit"], origin.get("part", ""))


def is_read(name: str, kind: str) -> bool:
    """Whether a file of a repository is among those that are fetched for what it is used as."""
    patterns = _READ.get(kind, _READ["model"])
    return any(fnmatch.fnmatch(name, p) for p in patterns) and not any(fnmatch.fnmatch(name, p) for p in _NOT_READ)


@contextlib.contextmanager
def as_recorded(lineage: Any) -> Iterator[None]:
    """A block in which hub names stand for the commits that a run's lineage has."""
    before = dict(_known)
    _known.update(_recorded(lineage))
    try:
        yield
    finally:
        _known.clear()
        _known.update(before)


def _recorded(content: Any) -> Iterator[tuple[tuple[str, str], dict[str, str]]]:
    if isinstance(content, dict) and "commit" in content:
        is_data = "source" in content
        name = content["source"].split(":")[0] if is_data else content["path"]
        yield ("dataset" if is_data else "model", name), {k: content[k] for k in ("commit", "licence") if k in content}
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _recorded(part)


def go_online() -> None:
    """Let the Hugging Face libraries use the network, unless the user forbids it; only where a hub name was given."""
    if os.environ.get("HF_HUB_OFFLINE", OFFLINE) != OFFLINE:
        return
    os.environ["HF_HUB_OFFLINE"] = "0"
    for module in ("huggingface_hub.constants", "datasets.config"):  # read the variable when imported
        if module in sys.modules:
            vars(sys.modules[module])["HF_HUB_OFFLINE"] = False
