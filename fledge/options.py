"""Click commands made from config classes: one option a field, with its unit and default."""

import importlib
import json
import os
import typing
from pathlib import Path
from typing import Any, Literal

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fledge import config as configs
from fledge.config import CommandConfig, FieldPath


def command_of(stage: str, name: str) -> click.Command:
    """The click command of `fledge <stage> <name>`, from `<Name>Config` in `<stage>/config.py`."""
    module = importlib.import_module(f"{stage}.config")
    class_name = "".join(word.title() for word in name.split("-")) + "Config"
    return build(getattr(module, class_name))


class StageGroup(click.Group):
    """The commands of a stage, each built when it is asked for."""

    def __init__(self, stage: str, names: list[str], **settings: Any) -> None:
        super().__init__(stage, **settings)
        self._stage, self._names = stage, names

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._names

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command_of(self._stage, cmd_name) if cmd_name in self._names else None


def build(config_class: type[CommandConfig]) -> click.Command:
    """A click command whose parameters are the fields of a config class."""
    shown = _shown_defaults(config_class)
    parameters: list[click.Parameter] = []
    names: dict[str, FieldPath] = {}
    for path, info in configs.leaves(config_class):
        name = "__".join(path)
        names[name] = path
        parameters.append(_parameter(name, path, info, shown.get(path)))
    arguments = [p for p in parameters if isinstance(p, click.Argument)]
    options = [p for p in parameters if not isinstance(p, click.Argument)]

    def callback(**values: Any) -> None:
        _carry_out(config_class, names, values)

    return click.Command(
        config_class.command,
        callback=callback,
        params=[*arguments, *_common_options(config_class), *options],
        help=config_class.__doc__,
        short_help=(config_class.__doc__ or "").strip().splitlines()[0],
        context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    )


def _common_options(config_class: type[CommandConfig]) -> list[click.Parameter]:
    config = "a shipped config or a YAML file, in place of default.yaml, whose values stand as defaults below"
    options: list[click.Parameter] = [
        click.Option(["--config"], metavar="NAME|PATH", help=config),
        click.Option(["--dry-run"], is_flag=True, help="print the resolved config and stop"),
        click.Option(["--json", "as_json"], is_flag=True, help="end with one JSON object on stdout"),
        click.Option(["--debug"], is_flag=True, help="show the traceback of an error"),
    ]
    if config_class.makes_run:
        options.append(click.Option(["--out"], metavar="RUN", help="run folder  [default: next runs/...-<n>]"))
        options.append(click.Option(["--resume"], metavar="RUN", help="continue this run, exactly"))
    if config_class.trains:
        options.append(click.Option(["--seeds"], metavar="N,N,...", help="one run a seed, one summary"))
    return options


def _shown_defaults(config_class: type[CommandConfig]) -> dict[FieldPath, Any]:
    """What a field is without an option: the class's default overlaid by the command's default.yaml."""
    file = configs.shipped(config_class, "default")
    shown = {
        path: info.get_default(call_default_factory=True)
        for path, info in configs.leaves(config_class)
        if not info.is_required()
    }
    return shown | (configs.values_in(config_class, file) if file.is_file() else {})


def _parameter(name: str, path: FieldPath, info: FieldInfo, default: Any) -> click.Parameter:
    kind, many = _click_type(info.annotation)
    if configs.is_argument(info):
        # Required-ness is checked by the config, so that --resume may leave arguments out.
        return click.Argument([name], type=kind, required=False, nargs=-1 if many else 1, metavar=path[-1].upper())
    text = info.description or ""
    facts = [configs.unit(info)] if configs.unit(info) else []
    if info.is_required():
        facts.append("required")
    elif default not in (None, [], "", PydanticUndefined):
        facts.append(f"default: {', '.join(map(str, default)) if isinstance(default, list) else default}")
    if facts:
        text += f"  [{'; '.join(facts)}]"
    if kind is click.BOOL:
        stem = configs.flag(path).removeprefix("--")
        head, _, tail = stem.rpartition(".")
        off = f"--{head}.no-{tail}" if head else f"--no-{tail}"
        return click.Option([f"--{stem}/{off}", name], default=None, help=text)
    return click.Option([configs.flag(path), name], type=kind, multiple=many, default=None, help=text)


def _click_type(annotation: Any) -> tuple[click.ParamType, bool]:
    """The click type of an annotation and whether it may be repeated."""
    annotation = configs.without_none(annotation)
    origin = typing.get_origin(annotation)
    if origin in (list, tuple):
        return _click_type(typing.get_args(annotation)[0])[0], True
    if origin is Literal and all(isinstance(choice, str) for choice in typing.get_args(annotation)):
        return click.Choice([str(choice) for choice in typing.get_args(annotation)]), False
    # Numbers stay text: the config parses them, so YAML and options obey the same checks.
    simple: dict[Any, click.ParamType] = {bool: click.BOOL, int: _Named("INT"), float: _Named("FLOAT")}
    return simple.get(annotation, _Named("TEXT")), False


class _Named(click.types.StringParamType):
    """Text with a metavar that names what the config will parse it as."""

    def __init__(self, label: str) -> None:
        self.name = label.lower()


def _carry_out(config_class: type[CommandConfig], names: dict[str, FieldPath], values: dict[str, Any]) -> None:
    from fledge import commands, hub
    from fledge.errors import UsageError

    os.environ.setdefault("HF_HUB_OFFLINE", hub.OFFLINE)  # nothing contacts the network unless a hub name is given
    overrides = {
        path: list(value) if isinstance(value, tuple) else value
        for name, path in names.items()
        if (value := values[name]) is not None and value != ()
    }
    source = values["config"]
    file = configs.resolve_config_path(config_class, source) if source else None
    out, resume = values.get("out"), values.get("resume")
    if resume:
        if out:
            raise UsageError("--out and --resume can't be given together: a resumed run stays in its folder")
        if values.get("seeds"):
            commands.check_seeds(Path(resume), commands.parse_seeds(values["seeds"]))
        if values["dry_run"]:
            _show_config(commands.resumed_config(config_class, Path(resume), file, overrides), values["as_json"])
            return
        result = commands.resume(config_class, Path(resume), file, overrides)
    else:
        default = configs.shipped(config_class, "default")
        resolved = configs.load(config_class, file or (default if default.is_file() else None), overrides)
        configs.refuse_idle(resolved, overrides)
        if values["dry_run"]:
            _show_config(resolved, values["as_json"])
            return
        options = {".".join(path): value for path, value in overrides.items()} | ({"config": source} if source else {})
        if values.get("seeds"):
            seeds = commands.parse_seeds(values["seeds"])
            result = commands.execute_seeds(resolved, seeds, Path(out) if out else None, options)
        else:
            result = commands.execute(resolved, Path(out) if out else None, options)
    _show(result, values["as_json"])


def _show_config(resolved: CommandConfig, as_json: bool) -> None:
    from fledge import console

    console.result(resolved.model_dump_json() if as_json else configs.dump(resolved).rstrip())


def _show(result: dict[str, Any], as_json: bool) -> None:
    from fledge import console

    if as_json:
        console.result(json.dumps(result))
    elif result["out"]:
        summary = Path(result["out"]) / "summary.md"
        if summary.is_file():
            console.result(summary.read_text(encoding="utf-8").rstrip())
