"""Where a result comes from: hashes of parents and data, versions, seed, commit."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from fledge import hub
from fledge.errors import RunError

PARTS = ("config.json", "index.json", "tokenizer.json", "encoder.json", "vocab.json")  # models, shards, tokenizers
PACKAGES = ("torch", "transformers", "tokenizers", "tiktoken", "datasets", "trl", "peft", "deepspeed", "numpy")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_folder(folder: Path, kind: str = "model") -> str:
    """Hex SHA-256 over the names and contents of a folder's files; model cards and dot files don't count.

    Args:
        kind: what the folder is used as; in the hub's cache, to which others add, what is read for that counts.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    if hub.origin(folder):
        files = [file for file in files if hub.is_read(file.relative_to(folder).as_posix(), kind)]
    for file in files:
        name = file.relative_to(folder).as_posix()
        if not any(part.startswith(".") for part in name.split("/")):
            digest.update(f"{name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of fledge, Python and the libraries that shape results."""
    found = {"python": platform.python_version()}
    for name in ("fledge-lm", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout that fledge runs from (`+` if it has changes); None outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def place(run: Path) -> dict[str, str]:
    """The working folder, from which a run's relative paths are meant, and the run's own path as given."""
    return {"working_folder": str(Path.cwd()), "run_folder": os.fspath(run)}


def parent(path: Path, kind: str) -> dict[str, Any]:
    """The record of one parent folder: kind, path as given (or hub name and commit), hash, the run it is part of."""
    record: dict[str, Any] = {"kind": kind, "path": os.fspath(path), **hub.origin(path)}
    record["sha256"] = sha256_folder(path, kind)
    if (path.parent / "lineage.json").is_file():
        record["run"] = os.fspath(path.parent)
    return record


def is_part(path: Path) -> bool:
    """Whether something lies there that a run can come from; no other folder that a lineage names is to be hashed."""
    return any((path / name).is_file() for name in PARTS)


def located(run: Path, record: dict[str, Any]) -> Path:
    """Where a parent of a run lies: as recorded; or the same content where it was, as far off, or beside the run."""
    path = Path(record["path"])
    if "commit" in record and hub.cached(record).is_dir():
        return hub.cached(record)
    if "commit" in record or path.is_dir():
        return path
    known = read(run)
    began = Path(known.get("working_folder", "."))
    places = [began / path]
    with contextlib.suppress(ValueError):  # on Windows there is no way from one drive to another
        from_run = os.path.relpath(began / path, began / known.get("run_folder", run))
        places.append(Path(os.path.normpath(run / from_run)))
    if "run" in record:
        places.append(run.parent / path.parent.name / path.name)
    return next((p for p in places if is_part(p) and sha256_folder(p) == record["sha256"]), path)


def read(run: Path) -> dict[str, Any]:
    """The lineage of a run folder.

    Raises:
        RunError: it has none, or it is damaged.
    """
    try:
        content = dict(json.loads((run / "lineage.json").read_text(encoding="utf-8")))
        judges = [reward["model"] for reward in content.get("rewards", []) if "model" in reward]
        parents = [*content.get("parents", []), *judges]
        if not all(isinstance(parent[name], str) for parent in parents for name in ("kind", "path", "sha256")):
            raise TypeError("a parent is described by three texts")
    except FileNotFoundError:
        raise RunError(f"{run}: no run folder (it has no lineage.json)") from None
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise RunError(f"{run}/lineage.json: can't be read ({error!r}); put it back as the run wrote it") from None
    return content


def require_same(run: Path, facts: dict[str, Any]) -> None:
    """Make sure that parents, data, tokenizer ... are those with which a run began.

    Raises:
        RunError: one is not; a resumed run would be another.
    """
    record = read(run)
    for name, fact in facts.items():
        if name in record and record[name] != json.loads(json.dumps(fact)):
            raise RunError(f"{run}: its {name} changed since the run began; put it back, or start a new run")
