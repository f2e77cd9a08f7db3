"""The harness: tasks ask, a model answers, answers become scores, scores become numbers with intervals.

A *task* is a name: `eval/tasks/<name>.yaml`, or a user's own YAML file, with the values of `TaskConfig`: a kind, data,
names of fields. A *kind* is a module `eval/tasks/<kind>.py`, found by its name (`minimal_pairs.py` is the pattern):

    FIELDS = ("query", "choices", "gold")            what each row must have; checked here, with file and line
    def item(row, task) -> Item                      what a row asks: `LogLikelihood` and `Generation` requests;
                                                     raises DataError, beginning with row.where
    def score(item, answers) -> {metric: value}      from the answers to its requests, in their order; a value is a
                                                     float, or a `Ratio` where the metric is sum(part) / sum(whole)
    def baselines(items) -> {metric: value}          what can be had without a model: chance, majority, a copy; with
                                                     `mean_over_sets`, as the score is
    def margin(item, answers) -> nats                optional: how far the verdict is from another one. Only with it a
                                                     kind is scored in bfloat16; close items again in float32
    def pooled(items, answers) -> {metric: Estimate} optional: metrics that are no mean over items (corpus BLEU)

A kind for which this does not fit (perplexity, win rate) has, in place of all these,

    def measure(subject, task, limit) -> Scores      `subject`: model, tokenizer, run; `task.data`: what to read

The score of a task is the unweighted mean over its sets (`Item.set`), each with its interval; items with the same
`Item.cluster` count as one observation there. Values between 0 and 1 that are all 0, half or 1 get Wilson's interval.
Every item's values are kept (`items` in the result), so that `eval compare` can pair two models.
"""

import importlib
import importlib.util
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from eval import intervals
from eval.config import TaskConfig
from eval.intervals import Estimate
from eval.items import Item, Ratio
from eval.subject import Subject
from fledge import config, console
from fledge.data import rows as data_rows
from fledge.data.rows import Row
from fledge.errors import ConfigError, DataError

TASKS = Path(__file__).resolve().parent / "tasks"

GIVE_DATA = "give --data PATHS, to one task at a time"
MAX_BAD_SHARE = 0.01  # of the rows; so many are passed over aloud, as everywhere

# Metrics of which less is better; of all others more.
LOWER_IS_BETTER = {
    "bits_per_byte",
    "perplexity",
    "nats_per_token",
    "log_loss",
    "longest_run",
    "longest_run_of_all",
    "recited",
}


class DoesNotApply(DataError):
    """A task can't be measured on this model or here; a suite leaves it out aloud."""


@dataclass(frozen=True)
class ItemScore:
    """The values of one item."""

    where: str
    set: str
    cluster: str
    values: Mapping[str, float | Ratio]


@dataclass(frozen=True)
class Scores:
    """All that was measured for a task, before it is summed up."""

    items: list[ItemScore]
    baselines: dict[str, float]
    pooled: dict[str, Estimate] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # what a reader must know: windows, items cut ...
    ceilings: dict[str, float] = field(default_factory=dict)  # the best attainable, where it is known


def find_task(name: str) -> tuple[str, TaskConfig]:
    """The name and settings of a task: a shipped name, or a YAML file.

    Raises:
        ConfigError: there is none, or a setting or the kind is wrong; with file and line.
    """
    if name.startswith("lm-eval:"):
        return name, TaskConfig(kind="lm_eval", data=[name.removeprefix("lm-eval:")])
    file = yaml_file("task", name, TASKS)
    task = config.load(TaskConfig, file)
    find_kind(task.kind, str(file))
    return file.stem, task


def find_tasks(names: Sequence[str]) -> list[tuple[str, TaskConfig]]:
    """Several tasks; see `find_task`.

    Raises:
        ConfigError: two are called the same.
    """
    found = [find_task(name) for name in names]
    for number, (own, _) in enumerate(found):
        if own in [other for other, _ in found[:number]]:
            raise ConfigError(f"--task {names[number]}: another task is called {own} as well; rename the file")
    return found


def yaml_file(what: str, name: str, shipped: Path) -> Path:
    """The file that `--task NAME` or `--suite NAME` means: a path, or a shipped name.

    Raises:
        ConfigError: there is none; lists the shipped names.
    """
    is_file = name.endswith((".yaml", ".yml"))
    file = Path(name) if is_file else shipped / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
        raise ConfigError(f"--{what} {name}: no such {'file' if is_file else what}; there are: {known}")
    return file


def find_kind(kind: str, where: str) -> Any:
    """The module of a kind of task.

    Raises:
        ConfigError: there is none; lists them.
    """
    if not kind.isidentifier() or importlib.util.find_spec(f"eval.tasks.{kind}") is None:
        known = ", ".join(sorted(path.stem for path in TASKS.glob("[a-z]*.py")))
        raise ConfigError(f"{where}: no kind of task {kind!r}; there are: {known}")
    return importlib.import_module(f"eval.tasks.{kind}")


def measure(subject: Subject, task: TaskConfig, limit: int | None = None) -> dict[str, Any]:
    """Measure a task on a model: `metrics`, `sets`, `items`, `settings`, `seconds`, ready for JSON.

    Raises:
        DataError: the task's data is missing or unfit; ConfigError, ModelError: task and model do not fit.
    """
    started = time.perf_counter()
    kind = find_kind(task.kind, f"kind {task.kind}")
    scores = (kind.measure if hasattr(kind, "measure") else _measure_items)(subject, task, limit)
    _require_finite(scores)
    sets = dict.fromkeys(item.set for item in scores.items)
    names = dict.fromkeys(name for item in scores.items for name in item.values)
    per_set = {name: _of_sets(scores.items, name) for name in names}
    whole = {name: intervals.over_sets(list(found.values())) for name, found in per_set.items()}
    return {
        "metrics": {
            name: _beside_limits(estimate, scores.baselines.get(name), scores.ceilings.get(name))
            for name, estimate in (whole | scores.pooled).items()
        },
        "sets": {
            key: {
                name: intervals.as_json(intervals.over_sets([found[key]]))
                for name, found in per_set.items()
                if key in found
            }
            for key in sets
            if len(sets) > 1
        },
        "items": _per_item(scores.items, list(names)),
        "settings": {"dtype": "float32"} | scores.settings,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _require_finite(scores: Scores) -> None:
    """Raises DataError where a value, perhaps of a user's own check or metric, is not finite."""
    values = [(f"{item.where}: {name}", value) for item in scores.items for name, value in item.values.items()]
    for what, value in values + [(f"{name} of all answers", found.value) for name, found in scores.pooled.items()]:
        if not isfinite(value.part if isinstance(value, Ratio) else value):
            raise DataError(f"{what} is {value}, no finite number; mend what gives it, or leave the row out")


def read_items(task: TaskConfig, kind: Any, limit: int | None) -> list[Item]:
    """The items of a task's data, the first `limit` of each set.

    Raises:
        DataError: no data given, or more than a few rows without a field or that ask nothing.
    """
    if not task.data:
        raise DataError(f"a task of kind {task.kind} needs data: {GIVE_DATA}")

    taken = Counter[str]()

    def make(row: Row) -> Item | None:
        try:
            item: Item = kind.item(_with_fields(row, task, kind.FIELDS), task)
        except DataError as error:
            raise ValueError(str(error).removeprefix(f"{row.where}: ")) from None
        taken[item.set] += 1
        return item if limit is None or taken[item.set] <= limit else None

    items = data_rows.read_as(make, task.data, MAX_BAD_SHARE).rows
    if not items:
        raise DataError(f"{', '.join(task.data)}: no rows in it")
    return items


def _with_fields(row: Row, task: TaskConfig, wanted: Sequence[str]) -> Row:
    """The row with the kind's names beside its own."""
    values = dict(row.values)
    for name in wanted:
        own = task.fields.get(name, name)
        if own not in values:
            raise DataError(
                f"{row.where}: no field '{own}'; it has {', '.join(map(str, values)) or 'none'}; "
                f"a task file says which one it is with 'fields: {{{name}: ...}}'"
            )
        values[name] = row.values[own]
    return replace(row, values=values)


def _measure_items(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    kind = find_kind(task.kind, task.kind)
    items = read_items(task, kind, limit)
    answers, settings = subject.answer(items, task, getattr(kind, "margin", None))
    scored = [
        ItemScore(item.row.where, item.set, item.cluster, kind.score(item, given))
        for item, given in zip(items, answers, strict=True)
    ]
    pooled = kind.pooled(items, answers) if hasattr(kind, "pooled") else {}
    baselines = kind.baselines(items)
    model = subject.ngrams if hasattr(kind, "margin") else None
    if model is not None:
        its = [
            replace(one, values=kind.score(item, given))
            for one, item, given in zip(scored, items, subject.ngram_answers(items, model), strict=True)
        ]
        values = {name: overall(its, name).value for name in baselines}
        baselines = {name: max(value, values[name]) for name, value in baselines.items()}
        settings |= {"ngram": {"model": model.name, **values}}
    template = {"prompt": task.prompt, "delimiter": task.delimiter, "chat": task.chat, "shots": 0}
    return Scores(scored, baselines, pooled, settings=template | settings)


def overall(items: Sequence[ItemScore], name: str) -> Estimate:
    """A metric's unweighted mean over the sets that have it."""
    return intervals.over_sets(list(_of_sets(items, name).values()))


def _of_sets(items: Sequence[ItemScore], name: str) -> dict[str, intervals.Items]:
    """A metric of the items of each set that has it."""
    sets: dict[str, list[ItemScore]] = {}
    for item in items:
        if name in item.values:
            sets.setdefault(item.set, []).append(item)
    return {key: _values(own, name) for key, own in sets.items()}


def _values(items: Sequence[ItemScore], name: str) -> intervals.Items:
    """A metric of the items of one set, all of which have it."""
    values = [Ratio.of(item.values[name]) for item in items]
    names = [item.cluster or item.where for item in items]
    clusters = names if len(set(names)) < len(names) else None
    return [v.part for v in values], [v.whole for v in values], clusters


def _beside_limits(estimate: Estimate, baseline: float | None, ceiling: float | None) -> dict[str, Any]:
    detectable = intervals.detectable(estimate)
    found = intervals.as_json(estimate) | {
        "baseline": baseline,
        "detectable": detectable if isfinite(detectable) else None,
    }
    return found if ceiling is None else found | {"ceiling": ceiling}


def _per_item(items: Sequence[ItemScore], names: Sequence[str]) -> dict[str, Any]:
    """Every item's place, set, cluster and values; a `Ratio` is a pair, a metric that it lacks is null."""

    def plain(value: float | Ratio | None) -> Any:
        return [value.part, value.whole] if isinstance(value, Ratio) else value

    return {
        "where": [item.where for item in items],
        "set": [item.set for item in items],
        "cluster": [item.cluster for item in items],
        "values": {name: [plain(item.values.get(name)) for item in items] for name in names},
    }


def note_baselines(name: str, result: Mapping[str, Any]) -> None:
    """Flag a model that loses to its baseline."""
    for metric, found in result["metrics"].items():
        lower_is_better = metric in LOWER_IS_BETTER
        baseline, nearest = found["baseline"], found["low" if lower_is_better else "high"]
        if baseline is None or nearest is None:
            continue
        if nearest > baseline if lower_is_better else nearest < baseline:
            console.warn(f"{name}: {metric} {found['value']:.4f} is worse than its baseline {baseline:.4f}")
