"""Results on disk, `RUN/eval/<task>-<hash>.json`: a file for each task, data and limit; nothing is measured twice."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import harness
from eval.config import TaskConfig
from eval.subject import Subject
from fledge import atomic, console, lineage
from fledge.data import sources
from fledge.models.folder import find_model
from tokenizer import shards

# Raised whenever numbers may differ from those of the version before; older results are measured again.
VERSION = 3  # since baselines are means over sets, as metrics are
FOLDER = "eval"


def measured(
    subject: Subject, name: str, task: TaskConfig, limit: int | None, out: str | None = None, fresh: bool = False
) -> dict[str, Any]:
    """The result of a task, from its folder if it is there for this model, task and data, else measured and written.

    Args:
        out: as of `folder_of`.
        fresh: measure again.
    Raises:
        as `harness.measure`.
    """
    folder = folder_of(subject, out)
    digest = _digest(subject, task, limit)
    file = folder / f"{name.replace(':', '-').replace('/', '-')}-{digest[:8]}.json" if folder else None
    if file is not None and not fresh:
        known = _read(file, subject, digest)
        if known is not None:
            console.note(f"{name}: measured before, {file} (--fresh measures again)")
            return known
    result = {
        "version": VERSION,
        "task": name,
        "task_sha256": digest,
        "model": {"path": str(subject.path), "sha256": subject.sha256, "text": _text(subject)},
        **harness.measure(subject, task, limit),
    }
    result["settings"] |= {"limit": limit, "data": task.data, "dtype_asked": subject.dtype}
    result["config"] = task.model_dump(mode="json")  # with it the same can be measured of another model
    if file is not None:
        atomic.write_file(file, json.dumps(result, indent=None) + "\n")
    return result


def folder_of(subject: Subject, out: str | None) -> Path | None:
    """Where results are kept: as told by `out`, else in the model's run; None: nowhere, it has none."""
    return Path(out) if out else subject.run and subject.run / FOLDER


def read_all(run: Path) -> list[dict[str, Any]]:
    """All results in a run's folder, in order of name; those of another version are left out aloud."""
    files = sorted((run / FOLDER).glob("*.json"))
    return [content for content in map(_load, files) if content is not None]


def text_of(result: Mapping[str, Any]) -> str | None:
    """Which text of the model's own a result is about; None: about data, which its `task_sha256` tells apart."""
    return result["model"]["text"] if result.get("config", {}).get("kind") == "own_text" else None


def _read(file: Path, subject: Subject, digest: str) -> dict[str, Any] | None:
    content = _load(file) if file.is_file() else None
    if content is None:
        return None
    if content["model"]["sha256"] != subject.sha256:
        console.note(f"{file}: of other weights; measuring again")
        return None
    is_same = content["task_sha256"] == digest and content["model"]["text"] == _text(subject)
    return content if is_same else None


def _load(file: Path) -> dict[str, Any] | None:
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        version = content.get("version")
    except (OSError, ValueError) as error:
        console.warn(f"{file}: can't be read ({error}); left out")
        return None
    if version != VERSION:
        console.warn(f"{file}: of version {version}, this is {VERSION}; left out, measure again")
        return None
    return content


def _digest(subject: Subject, task: TaskConfig, limit: int | None) -> str:
    """Of all that decides the numbers besides the model: the task, its data's content, limit and number format."""
    data = sources.describe(sources.expand(task.data)) if task.data and task.kind != "lm_eval" else task.data
    content = [task.model_dump(mode="json"), data, limit, subject.dtype, *_named(task)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _named(task: TaskConfig) -> list[str]:
    """The content of what a task names besides its data: other models, a user's own checks and metrics."""
    folders = [find_model(name) for name in (task.reward_model, task.against) if name]
    if task.kind == "lm_eval":
        folders += [Path(name) for name in task.data[1:]]
    files = [Path(name) for name in (task.check, *task.metrics) if name.endswith(".py")]
    found = [lineage.sha256_folder(folder) for folder in folders if folder.is_dir()]
    return found + [lineage.sha256_file(file) for file in files if file.is_file()]


def _text(subject: Subject) -> str | None:
    """Of the model's own text, which some tasks are about and some baselines are counted in."""
    folder = subject.shards
    return lineage.sha256_file(folder / shards.INDEX) if folder else None
