"""Configs: frozen pydantic models, filled from defaults < YAML < options; errors name file and line."""

import difflib
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from fledge.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

FieldPath = tuple[str, ...]


# Written to by every model of a life, from its first step to its last stage, so that they can be read side by side.
SAMPLE_PROMPTS = ("Once upon a time", "The secret to happiness", "What is the capital of France?")


# Numbers with their unit, and fields that many commands have.
Steps = Annotated[int, Field(json_schema_extra={"unit": "steps"})]
Tokens = Annotated[int, Field(json_schema_extra={"unit": "tokens"})]
Ratio = Annotated[float, Field(json_schema_extra={"unit": "ratio"})]
ModelName = Annotated[
    str, Field(description="a run, a model folder or a hub name", json_schema_extra={"argument": True})
]
BadShare = Annotated[Ratio, Field(ge=0, le=1, description="of all rows that may be unfit before the run stops")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], Field(description="auto: cuda, else mps, else cpu")]


class Config(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
    # Which settings do nothing while another has a value, or is given (True), or isn't (False).
    idle: ClassVar[dict[tuple[str, str | bool], tuple[str, ...]]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes` and `on` are true, which pydantic takes for 1."""
        if isinstance(value, bool) and without_none(cls.model_fields[str(info.field_name)].annotation) in (int, float):
            raise PydanticCustomError("bool", "input should be a number, not yes or no")
        return value


class CommandConfig(Config):
    """The settings of one command, `fledge <stage> <command>`; its docstring is the command's help."""

    stage: ClassVar[str]
    command: ClassVar[str]
    configs_of: ClassVar[str | None] = None  # another command of the stage, whose configs this one takes
    makes_run: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    distributed: ClassVar[bool] = False  # can run in several processes
    # Settings that a resumed run may change; "more" may only grow.
    resumable: ClassVar[dict[str, Literal["any", "more"]]] = {}


class RunConfig(Config):
    """What every training command has: seed, length, checkpoints, device."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, data order and sampling")
    max_steps: Steps = Field(1000, ge=1, description="optimizer updates")
    checkpoint_every: Steps = Field(200, ge=1, description="between checkpoints")
    keep_checkpoints: int = Field(
        2, ge=1, description="newest checkpoints kept; the best by validation is kept besides"
    )
    log_every: Steps = Field(10, ge=1, description="between lines of metrics.jsonl")
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the forward pass; auto: bfloat16 on CUDA, else float32"
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: one a physical core that this process may use")
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="also log there, through their own libraries"
    )


# What a resumed run may change of the group `run`.
RUN_RESUMABLE: dict[str, Literal["any", "more"]] = {
    "run.max_steps": "more",
    "run.log_every": "any",
    "run.device": "any",
    "run.keep_checkpoints": "any",
    "run.trackers": "any",
}


class TrainingConfig(CommandConfig):
    """The settings of a command that trains; has a group `run`."""

    trains: ClassVar[bool] = True
    resumable: ClassVar[dict[str, Literal["any", "more"]]] = RUN_RESUMABLE


C = TypeVar("C", bound=Config)


def groups(config_class: type[Config]) -> dict[str, type[Config]]:
    """The fields of a config class that are groups of settings themselves."""
    return {
        name: info.annotation
        for name, info in config_class.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Config)
    }


def leaves(config_class: type[Config], prefix: FieldPath = ()) -> Iterator[tuple[FieldPath, FieldInfo]]:
    """Every setting below a config class with its path, `("schedule", "warmup_steps")`, in declared order."""
    inner = groups(config_class)
    for name, info in config_class.model_fields.items():
        if name in inner:
            yield from leaves(inner[name], (*prefix, name))
        else:
            yield (*prefix, name), info


def flag(path: FieldPath) -> str:
    """The option of a setting: `("optim", "learning_rate")` is `--optim.learning-rate`."""
    return "--" + ".".join(path).replace("_", "-")


def get(config: Config, path: FieldPath) -> Any:
    """The value at a path."""
    value: Any = config
    for name in path:
        value = getattr(value, name)
    return value


def with_values(config: C, values: Mapping[str, Any]) -> C:
    """A copy with some settings replaced, `{"run.max_steps": 10}`, validated again; errors as in `load`."""
    before = {leaf: get(config, leaf) for leaf, _ in leaves(type(config))}
    return load(type(config), None, before | {tuple(dotted.split(".")): value for dotted, value in values.items()})


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `3m`, `1h30m` or a plain number of seconds.

    Raises:
        ValueError: the text is none of these, or not positive.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = (
        sum(float(part or 0) * scale for part, scale in zip(match.groups(), (3600, 60, 1), strict=True))
        if match
        else 0.0
    )
    if not seconds > 0 or not math.isfinite(seconds):
        raise ValueError(f"{text!r} is no duration; write 90s, 3m or 1h30m")
    return seconds


def checked_duration(*names: str) -> Any:
    """A validator for fields that hold a duration as text (None passes)."""

    def check(value: str | None) -> str | None:
        if value is not None:
            parse_duration(value)
        return value

    return field_validator(*names)(check)


def shipped(config_class: type[CommandConfig], name: str) -> Path:
    """The YAML file that ships under a name, `configs/<stage>/<command>/<name>.yaml`."""
    return CONFIGS / config_class.stage / (config_class.configs_of or config_class.command) / f"{name}.yaml"


def resolve_config_path(config_class: type[CommandConfig], source: str) -> Path:
    """The file that `--config SOURCE` means: a path, or a shipped name.

    Raises:
        ConfigError: there is no such file; lists the shipped names.
    """
    path = Path(source)
    if "/" in source or source.endswith((".yaml", ".yml")):
        if path.is_dir():
            path = path / "config.yaml"
        if not path.is_file():
            raise ConfigError(f"{source}: no such config file")
        return path
    path = shipped(config_class, source)
    if not path.is_file():
        names = sorted(file.stem for file in path.parent.glob("*.yaml"))
        close = difflib.get_close_matches(source, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names) or 'none'}"
        raise ConfigError(
            f"--config {source}: 'fledge {config_class.stage} {path.parent.name}' ships no such config{hint}"
        )
    return path


def load(config_class: type[C], file: Path | None, overrides: Mapping[FieldPath, Any] | None = None) -> C:
    """Fill a config from defaults < YAML file < overrides.

    Args:
        file: a YAML file of nested groups, or None.
        overrides: values by path, `{("run", "seed"): 1}`; strings are parsed as the field's type.
    Raises:
        ConfigError: one line a problem, each with file and line or option, all at once.
    """
    tree, lines = _read_yaml(file) if file else ({}, {})
    overrides = dict(overrides or {})
    for path, value in overrides.items():
        try:
            _put(tree, path, value)
        except TypeError:
            line = lines[path[:1]]
            raise ConfigError(f"{file}:{line}: '{path[0]}' is a group; put its settings below it") from None
    try:
        return config_class.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(problem, config_class, file, lines, overrides) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None


def refuse_idle(config: Config, typed: Iterable[FieldPath]) -> None:
    """Refuse options that would do nothing; a config file may list all settings, so there they are left alone.

    Raises:
        ConfigError: one line an option.
    """
    problems = []
    for path in typed:
        for n in range(len(path)):
            group = get(config, path[:n])
            for (name, value), names in group.idle.items():
                found, other = get(group, (name,)), flag((*path[:n], name))
                if ".".join(path[n:]) in names and value in (found, bool(found)):
                    beside = {True: f"with {other}", False: f"without {other}"}.get(value, f"with {other} {value}")
                    problems.append(f"{flag(path)} does nothing {beside}; change that, or leave this out")
    if problems:
        raise ConfigError("\n".join(problems))


def values_in(config_class: type[Config], file: Path) -> dict[FieldPath, Any]:
    """The settings that a YAML file names, each with its value as it is written there."""
    tree, lines = _read_yaml(file)
    return {leaf: functools.reduce(operator.getitem, leaf, tree) for leaf, _ in leaves(config_class) if leaf in lines}


def dump(config: Config) -> str:
    """The config as YAML that `load` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _put(tree: dict[str, Any], path: FieldPath, value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _read_yaml(file: Path) -> tuple[dict[str, Any], dict[FieldPath, int]]:
    """The mapping in a YAML file and the line (from 1) on which each key stands."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if node is None:
        return {}, {}
    lines: dict[FieldPath, int] = {}

    def build(node: yaml.Node, path: FieldPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            built: dict[str, Any] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.value in built:
                    raise ConfigError(f"{file}:{line}: key '{key.value}' stands twice")
                lines[(*path, key.value)] = line
                built[key.value] = build(value, (*path, key.value))
            return built
        loader = yaml.SafeLoader("")
        try:
            # YAML 1.1 reads 1e-4 as text; pydantic parses it as the field's type.
            return loader.construct_object(node, deep=True)
        finally:
            loader.dispose()

    try:
        tree = build(node, ())
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{where}: not a plain value ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}:1: expected 'key: value' lines")
    return tree, lines


def _explain(
    problem: Any,
    config_class: type[Config],
    file: Path | None,
    lines: Mapping[FieldPath, int],
    overrides: Mapping[FieldPath, Any],
) -> str:
    """One line for one pydantic problem: where it stands, what is wrong, what to do."""
    path = tuple(str(part) for part in problem["loc"])
    known = dict(leaves(config_class))
    # A list's index or a union's branch at the end of a location is not part of the key.
    while path and path not in known and path[:-1] in known:
        path = path[:-1]
    where = next((flag(path[:n]) for n in range(len(path), 0, -1) if path[:n] in overrides), "")
    if not where and not any(flag(typed) in problem["msg"] for typed in overrides):  # else it says by itself where
        line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
        where = f"{file}:{line}" if line else (str(file) if file and problem["type"] != "missing" else "")
    if problem["type"] == "extra_forbidden":
        owner = config_class
        for name in path[:-1]:
            owner = groups(owner)[name]
        close = difflib.get_close_matches(path[-1], list(owner.model_fields), 1)
        group = f" in '{'.'.join(path[:-1])}'" if path[:-1] else ""
        hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(owner.model_fields)}"
        return f"{where}: unknown key '{path[-1]}'{group}{hint}"
    if problem["type"] == "missing":
        name = path[-1].upper() if is_argument(known[path]) else flag(path)
        return f"{name} is required"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        message = "is a group; put its settings below it, or leave it out"
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    got = f" (got {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
    name = "" if where.startswith("--") else f"'{'.'.join(path)}' "
    return f"{where}: {name}{message[:1].lower()}{message[1:]}{got}".removeprefix(": ")


def is_argument(info: FieldInfo) -> bool:
    """Whether a field is given as a positional ARGUMENT on the command line."""
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("argument"))


def unit(info: FieldInfo) -> str:
    """The unit of a field as stated in its declaration, or an empty string."""
    return str(info.json_schema_extra.get("unit", "")) if isinstance(info.json_schema_extra, dict) else ""


def without_none(annotation: Any) -> Any:
    """`X` of an annotation `X | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
