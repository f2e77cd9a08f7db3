"""`fledge eval run`: measure one model by a suite or by single tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import harness, results
from eval.config import MeasureConfig, RunConfig, SuiteConfig, TaskConfig
from eval.harness import DoesNotApply
from eval.subject import Subject
from fledge import config, console
from fledge.errors import DataError
from fledge.village import spec

SUITES = Path(__file__).resolve().parent / "suites"


def run(settings: RunConfig) -> dict[str, Any]:
    """Measure a model; see RunConfig."""
    suite = None if settings.task else find_suite(settings.suite)
    names = settings.task or (suite.tasks if suite else [])
    limit = settings.limit or (suite.limit if suite else None)
    tasks = harness.find_tasks(names)
    subject = Subject.open(settings.model, settings.device, settings.dtype, settings.batch_size)
    found: dict[str, dict[str, Any]] = {}
    for name, task in tasks:
        try:
            task = with_data(name, task, settings, subject)
            found[name] = results.measured(subject, name, task, limit, settings.out, settings.fresh)
        except DoesNotApply as error:
            if suite is None:
                raise
            console.note(f"{name}: left out: {error}")
            continue
        harness.note_baselines(name, found[name])
    if not found:
        raise DataError(f"suite {settings.suite}: none of its tasks can be measured on this model; see above")
    console.result(table(found))
    folder = results.folder_of(subject, settings.out)
    return {
        "model": str(subject.path),
        "out": str(folder) if folder else None,
        "results": {name: result["metrics"] for name, result in found.items()},
        "details": {
            name: {key: result[key] for key in ("sets", "settings", "seconds")} for name, result in found.items()
        },
    }


def find_suite(name: str) -> SuiteConfig:
    """A shipped suite by its name, or a YAML file.

    Raises:
        ConfigError: there is none.
    """
    return config.load(SuiteConfig, harness.yaml_file("suite", name, SUITES))


def with_data(name: str, task: TaskConfig, settings: MeasureConfig, subject: Subject | None) -> TaskConfig:
    """The task with its data: what was typed, what its own file names, or what lies below a suite's folder.

    Raises:
        DoesNotApply: the data was not given.
    """
    has_own = getattr(harness.find_kind(task.kind, name), "HAS_OWN_DATA", False)
    found = task if has_own else _with_data(name, task, settings, subject)
    if settings.task and settings.data and found.data == task.data:
        console.warn(f"{name}: makes no use of --data")
    return found


def _with_data(name: str, task: TaskConfig, settings: MeasureConfig, subject: Subject | None) -> TaskConfig:
    if task.kind == "lm_eval":  # its first entry is a name
        return task.model_copy(update={"data": [*task.data, *settings.data]})
    if not task.data and (not settings.data or len(settings.task) != 1):
        return task
    shipped = harness.TASKS / f"{name}.yaml"  # a file of the user's may have the same name
    is_shipped = shipped.is_file() and task == config.load(TaskConfig, shipped)
    wanted = [Path(root) / entry for root in settings.data for entry in task.data if is_shipped]
    there = [str(path) for path in wanted if path.exists()]
    if there:
        return task.model_copy(update={"data": there})
    if len(settings.task) == 1 and settings.data:  # of several, each finds its own
        return task.model_copy(update={"data": settings.data})
    if all(entry.startswith("village:") for entry in task.data):
        return task if settings.task or subject is None else _in_own_village(task, subject)
    if not is_shipped:  # a user's own file: its paths are as typed
        return task
    usual = ", ".join(task.data)
    option = f"--task {name} --data PATHS" if settings.task else f"--data FOLDER, with {usual} in it"
    raise DoesNotApply(f"its data is not here; give {option}")


def _in_own_village(task: TaskConfig, subject: Subject) -> TaskConfig:
    """The task about the village that the model knows.

    Raises:
        DoesNotApply: it knows none.
    """
    if subject.village is None:
        raise DoesNotApply("the model was not trained on the stories of one village")
    world, seed = subject.village
    found = [spec.parse_spec(entry) for entry in task.data]
    return task.model_copy(update={"data": [f"village:{world}-{seed}/{s.kind}:{s.part}" for s in found]})


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers as a Markdown table."""
    rows = [
        [
            name,
            metric,
            f"{m['value']:.4f}",
            "" if m["low"] is None else f"{m['low']:.4f} to {m['high']:.4f}",
            str(m["n"]),
            "" if m["baseline"] is None else f"{m['baseline']:.4f}",
            "" if m["detectable"] is None else f"{m['detectable']:.4f}",
        ]
        for name, result in found.items()
        for metric, m in result["metrics"].items()
    ]
    return console.table(rows, ["task", "metric", "value", "95 % interval", "n", "baseline", "detectable"])
