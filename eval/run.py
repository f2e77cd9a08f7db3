"""`fledge eval run`: measure one model by a suite or by single tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import harness, results
from eval.config import RunConfig, SuiteConfig, TaskConfig
from eval.harness import DoesNotApply
from eval.subject import Subject
from fledge import config, console
from fledge.errors import ConfigError, DataError

SUITES = Path(__file__).resolve().parent / "suites"


def run(settings: RunConfig) -> dict[str, Any]:
    """Measure a model; see RunConfig."""
    suite = None if settings.task else find_suite(settings.suite)
    names = settings.task or (suite.tasks if suite else [])
    limit = settings.limit or (suite.limit if suite else None)
    tasks = [harness.find_task(name) for name in names]
    subject = Subject.open(settings.model, settings.device, settings.dtype, settings.batch_size)
    folder = Path(settings.out) if settings.out else subject.run and subject.run / results.FOLDER
    found: dict[str, dict[str, Any]] = {}
    for name, task in tasks:
        try:
            task = _with_data(name, task, settings)
            found[name] = results.measured(subject, name, task, limit, folder, settings.fresh)
        except DoesNotApply as error:
            if suite is None:
                raise
            console.note(f"{name}: left out: {error}")
            continue
        harness.note_baselines(name, found[name])
    if not found:
        raise DataError(f"suite {settings.suite}: none of its tasks can be measured on this model; see above")
    console.result(table(found))
    return {
        "model": str(subject.path),
        "out": str(folder) if folder else None,
        "results": {name: result["metrics"] for name, result in found.items()},
        "details": {
            name: {key: result[key] for key in ("sets", "settings", "seconds")}
            for name, result in found.items()
        },
    }


def find_suite(name: str) -> SuiteConfig:
    """A shipped suite by its name, or a YAML file.

    Raises:
        ConfigError: there is none.
    """
    is_file = name.endswith((".yaml", ".yml"))
    file = Path(name) if is_file else SUITES / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml")))
        raise ConfigError(f"--suite {name}: no such {'file' if is_file else 'suite'}; there are: {known}")
    return config.load(SuiteConfig, file)


def _with_data(name: str, task: TaskConfig, settings: RunConfig) -> TaskConfig:
    """The task with its data: what was typed, what its own file names, or what lies below a suite's folder.

    Raises:
        DoesNotApply: the data was not given.
    """
    if task.kind == "lm_eval" or (not task.data and not settings.data):
        return task
    if settings.task and settings.data:
        return task.model_copy(update={"data": settings.data})
    if name.endswith((".yaml", ".yml")) or all(entry.startswith("village:") for entry in task.data):
        return task
    wanted = [Path(root) / entry for root in settings.data for entry in task.data]
    there = [str(path) for path in wanted if path.exists()]
    if not there:
        usual = ", ".join(task.data)
        option = f"--task {name} --data PATHS" if settings.task else f"--data FOLDER, with {usual} in it"
        raise DoesNotApply(f"its data is not here; give {option}")
    return task.model_copy(update={"data": there})


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers as a Markdown table."""
    rows = [
        [
            name,
            metric,
            f"{m['value']:.4f}",
            f"{m['low']:.4f} to {m['high']:.4f}",
            str(m["n"]),
            "" if m["baseline"] is None else f"{m['baseline']:.4f}",
            f"{m['detectable']:.4f}",
        ]
        for name, result in found.items()
        for metric, m in result["metrics"].items()
    ]
    return console.table(rows, ["task", "metric", "value", "95 % interval", "n", "baseline", "detectable"])
