"""Metrics are plain functions, a file each; here they become loadable with `evaluate.load(path)`, and by name.

`evaluate` takes five seconds to import, so nothing here imports it unless a metric of the hub is asked for.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from eval import user_file
from fledge import console, hub
from fledge.errors import ConfigError, first_line

# A metric: (predictions, references, **settings) -> float, or a dict of floats.
Metric = Callable[..., Any]
Reads = Literal["texts", "labels", "probabilities"]

METRICS = Path(__file__).resolve().parent / "metrics"


def wrapped(function: Metric, reads: Reads) -> Any:
    """An `evaluate.Metric` class around a metric function; None while `evaluate` is not imported.

    A metric file ends with `Metric = wrapped(<its function>, reads=...)`: that is what `evaluate.load` finds.

    Args:
        reads: what its predictions are, and with them the references: texts (one right text, or several);
            labels (numbers or names); probabilities (of label 1, or of every label, against label numbers).
    """
    evaluate: Any = sys.modules.get("evaluate")
    if not hasattr(evaluate, "Metric"):
        return None

    class Module(evaluate.Metric):
        def _info(self) -> Any:
            return evaluate.MetricInfo(description=function.__doc__ or "", citation="", features=_features(reads))

        def _compute(self, **inputs: Any) -> dict[str, Any]:
            value = function(**inputs)
            return value if isinstance(value, dict) else {function.__name__: value}

    Module.__name__ = function.__name__
    return Module


def _features(reads: Reads) -> list[Any]:
    from datasets import Features, Value

    text, number = Value("string"), Value("int64")
    pairs: dict[Reads, list[tuple[Any, Any]]] = {
        "texts": [(text, text), (text, [text])],
        "labels": [(number, number), (text, text)],
        "probabilities": [(Value("float64"), number), ([Value("float64")], number)],
    }
    return [Features({"predictions": left, "references": right}) for left, right in pairs[reads]]


def find(name: str) -> Metric:
    """The metric of a name: a file of `eval/metrics/`, a file of the user's, or one of the hub through `evaluate`.

    Raises:
        ConfigError: there is none; says where was looked.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    if (METRICS / f"{name}.py").is_file():
        found: Metric = getattr(importlib.import_module(f"eval.metrics.{name}"), name)
        return found
    if hub.looks_like_hub_name(name):
        return _from_hub(name)
    known = ", ".join(sorted(file.stem for file in METRICS.glob("[!_]*.py")))
    raise ConfigError(f"no metric {name!r}; there are {known}, files (my_metric.py) and hub names (owner/name)")


def _from_file(path: Path) -> Metric:
    function = getattr(user_file.load(path), path.stem, None)
    if not callable(function):
        raise ConfigError(f"{path}: expected a function `{path.stem}(predictions, references)` in it")

    def metric(predictions: Any, references: Any) -> Any:
        try:
            return function(predictions, references)
        except Exception as error:
            raise ConfigError(f"{path}: {user_file.said(error)}") from error

    return metric


def _from_hub(name: str) -> Metric:
    hub.go_online()
    import evaluate

    console.warn(f"{name}: a metric of the hub is a program, which runs on this machine with your rights")
    try:
        metric = evaluate.load(name)
    except Exception as error:  # offline, unknown and broken all have classes of their own
        raise ConfigError(f"{name}: the hub can't give this metric ({first_line(error)})") from None
    return lambda predictions, references: metric.compute(predictions=predictions, references=references)
