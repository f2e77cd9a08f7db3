"""Generated answers that a program judges: `check` names a file of eval/checks/, or one of the user's own.

A check file has `check(row, answer) -> float`, 0 to 1, which becomes the metric `right`; or, in its place, `scores(row,
answer)` with several metrics by name. `cluster(row)`, if it has one, says which rows ask for the same thing.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import generated, user_file
from eval.config import TaskConfig
from eval.intervals import Estimate
from eval.items import Answer, Item, Ratio
from fledge.data.rows import Row
from fledge.errors import ConfigError, DataError

FIELDS = ()

CHECKS = Path(__file__).resolve().parent.parent / "checks"


def find_check(name: str) -> Any:
    """The check of a name: a file of eval/checks/, or a file of the user's.

    Raises:
        ConfigError: there is none, it can't be imported, or has no function `check` or `scores`.
    """
    if name.endswith(".py") and Path(name).is_file():
        found: Any = user_file.load(name)
    elif name and (CHECKS / f"{name}.py").is_file():
        found = importlib.import_module(f"eval.checks.{name}")
    else:
        known = ", ".join(sorted(file.stem for file in CHECKS.glob("[!_]*.py")))
        raise ConfigError(f"'check: {name}': no such check; there are {known}, or a file of your own, my_check.py")
    if not hasattr(found, "check") and not hasattr(found, "scores"):
        raise ConfigError(f"{name}: expected a function `check(row, answer)` in it")
    return found


def item(row: Row, task: TaskConfig) -> Item:
    """The row's prompt."""
    prompt, check = generated.prompt_of(row, task), find_check(task.check)
    text = generated.text_of(prompt)
    with _guarded(row.where):
        cluster = check.cluster(row.values) if hasattr(check, "cluster") else text
    facts = {"prompt": text, "check": check, "must_stop": task.must_stop}
    found = Item(row, (generated.request(prompt, task),), row.source, cluster, facts)
    _judge(found, "")  # a row that the check refuses is an error here, not after an hour of answers
    return found


def score(item: Item, answers: Sequence[Answer]) -> dict[str, float | Ratio]:
    """The check's verdict, and whether the answer stopped by itself."""
    answer = answers[0]
    verdict = _judge(item, answer.text)
    if item.facts["must_stop"] and not answer.has_stopped:
        verdict = dict.fromkeys(verdict, 0.0)
    return {**verdict, **generated.beside(answer)}


def baselines(items: Sequence[Item]) -> dict[str, float]:
    """The better of an empty answer and of the prompt repeated."""
    return generated.best_copies(items, _judge)


def pooled(items: Sequence[Item], answers: Sequence[Sequence[Answer]]) -> dict[str, Estimate]:
    """The variety of the answers."""
    return generated.variety(answers)


def _judge(item: Item, text: str) -> Mapping[str, float | Ratio]:
    check, row = item.facts["check"], item.row.values
    with _guarded(item.row.where):
        found = check.scores(row, text) if hasattr(check, "scores") else {"right": check.check(row, text)}
        return {name: value if isinstance(value, Ratio) else float(value) for name, value in found.items()}


@contextlib.contextmanager
def _guarded(where: str) -> Iterator[None]:
    """Whatever a check raises, which may be a user's, becomes an error that names the row."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:
        raise DataError(f"{where}: the check raises {user_file.said(error)}") from error
