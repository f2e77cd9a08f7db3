"""The runs that are compared: what they were trained from and on, and whether they agree."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fledge import commands, config, lineage
from fledge.device import resolve_device
from fledge.errors import ConfigError, ModelError, RunError
from fledge.models.folder import find_model, read_config
from fledge.tokens import TextTokenizer
from rlhf.config import CompareConfig

_UNSET = CompareConfig()
# Settings that may be left open: where they stand in a run's config.yaml, and what they are where no run says.
_OPEN: dict[str, tuple[str, Any]] = {
    "reward": ("reward", None),
    "unfinished_penalty": ("scores.unfinished_penalty", 0.0),
    "gold": ("gold", ""),
    "prompts": ("prompts", None),
    "held_out_share": ("validation.share", 0.1),
    "sampling.max_new_tokens": ("sampling.max_new_tokens", 64),
    "sampling.temperature": ("sampling.temperature", 1.0),
}


@dataclass(frozen=True)
class Contestant:
    """One policy."""

    name: str  # as it was given
    path: Path  # of the model
    method: str  # the command that trained it, such as ppo; "policy" for a folder that no run of ours made
    settings: dict[str, Any]  # of its run
    parent: dict[str, Any] | None  # the model that it began with, by its run's lineage


def find(names: Sequence[str]) -> list[Contestant]:
    """The policies that are meant; a run of several seeds is one for each.

    Raises:
        ModelError: no model there, or one that writes no answers.
    """
    expanded = []
    for name in names:
        has_seeds = (Path(name) / commands.SEEDS).is_file()
        expanded += [path.as_posix() for path in sorted(Path(name).glob("seed-*"))] if has_seeds else [name]
    return [_find(name) for name in dict.fromkeys(expanded)]


def _find(name: str) -> Contestant:
    path = find_model(name)
    kinds = read_config(path).get("architectures") or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(f"{path}: holds a {', '.join(kinds)}, no policy; give runs of ppo, dpo or grpo")
    if not (path.parent / "lineage.json").is_file():
        return Contestant(name, path, "policy", {}, None)
    record = lineage.read(path.parent)
    settings = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
    models = [parent for parent in record["parents"] if parent["kind"] == "model"]
    return Contestant(name, path, record["command"].split()[-1], settings, models[0] if models else None)


def resolved(asked: CompareConfig, found: Sequence[Contestant]) -> CompareConfig:
    """The settings, with what was left open taken from the runs.

    Raises:
        ConfigError: they differ, or none of them says.
    """
    values: dict[str, Any] = {"device": resolve_device(asked.device, "--device")}
    for own, (key, default) in _OPEN.items():
        leaf = tuple(own.split("."))
        if config.get(asked, leaf) != config.get(_UNSET, leaf):
            continue
        said = {one.name: value for one in found if (value := _at(one.settings, key)) is not None}
        if own == "held_out_share":  # by a hash: the smaller part lies within the larger ones
            said = dict(sorted(said.items(), key=lambda item: item[1])[:1])
        if len({json.dumps(value) for value in said.values()}) > 1:
            each = ", ".join(f"{name}: {value}" for name, value in said.items())
            raise ConfigError(f"the runs differ in {key} ({each}); choose one with {config.flag(leaf)}")
        if not said and default is None:
            raise ConfigError(f"none of the runs says which {own} to compare by; give {config.flag(leaf)}")
        values[own] = next(iter(said.values()), default)
        if str(values[own]).endswith(".py"):  # not where a run that came from elsewhere asks for it
            flag = f"{config.flag(leaf)} {values[own]}"
            raise ConfigError(f"{next(iter(said))}: its {own} is Python code; name it yourself with {flag}")
    return config.with_values(asked, values)


def _at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = (settings or {}).get(name)
    return settings


def reference(name: str, found: Sequence[Contestant]) -> Path:
    """The folder of the model that is named, or that all runs began with.

    Raises:
        RunError: they began with different ones, one does not say, or it is not what it was.
    """
    if name:
        return find_model(name)
    if not found:
        raise RunError("name runs to compare, or a model alone with --reference")
    began = {one.name: one.parent for one in found}
    for run, parent in began.items():
        if parent is None:
            raise RunError(f"{run}: no run that says which model it began with; name that with --reference")
    parents = [parent for parent in began.values() if parent]
    if len({parent["sha256"] for parent in parents}) > 1:
        each = ", ".join(f"{run} with {parent['path']}" for run, parent in began.items() if parent)
        raise RunError(
            f"the runs began with different models ({each}), and KLs to different references can't be compared; "
            "leave some out, or name one with --reference"
        )
    path = find_model(lineage.located(found[0].path.parent, parents[0]))
    if lineage.sha256_folder(path) != parents[0]["sha256"]:
        raise RunError(f"{path}: changed since {found[0].name} was trained from it; put it back")
    return path


def check_tokenizers(found: Sequence[Contestant], reference: Path, tokenizer: TextTokenizer) -> None:
    """Make sure that all policies read and write the reference's tokens.

    Raises:
        ModelError: one does not.
    """
    for one in found:
        own = TextTokenizer.from_folder(one.path)
        if (own.fingerprint, own.chat_template) != (tokenizer.fingerprint, tokenizer.chat_template):
            what = "tokenizer" if own.fingerprint != tokenizer.fingerprint else "chat template"
            raise ModelError(
                f"{one.name}: its {what} differs from that of the reference {reference}, so there is no KL between "
                "them; compare runs that were trained from one model"
            )
