"""`sentiment:CLASSIFIER` or `sentiment:CLASSIFIER#LABEL`: the probability that a classifier gives to a label."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fledge.errors import DataError
from fledge.models import classifier
from fledge.models.folder import find_model

USAGE = "sentiment:runs/reviews is a classifier of `fledge finetune classify`, sentiment:runs/reviews#pos its label"


def folder_of(argument: str) -> Path:
    """The folder of the classifier."""
    return find_model(_parts(argument)[0])


def make(argument: str, device: str) -> Callable[[Sequence[dict[str, Any]], Sequence[str]], list[float]]:
    """A reward from a classifier: of a plain prompt with its answer as one text, of a conversation of the answer.

    Raises:
        DataError: the classifier has no such label; lists its labels.
    """
    path, wanted = _parts(argument)
    made = classifier.load(path, device)
    names = [wanted] if wanted else ["pos", "positive"]
    places = [place for place, label in enumerate(made.labels) if label.lower() in map(str.lower, names)]
    if not places:
        raise DataError(
            f"--reward sentiment:{argument}: no label {' or '.join(names)}; name one of {', '.join(made.labels)} as "
            f"sentiment:{path}#{made.labels[0]}"
        )

    def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
        asked = [row["prompt"] if isinstance(row["prompt"], str) else "" for row in rows]
        texts = [(prompt + answer, None) for prompt, answer in zip(asked, answers, strict=True)]
        return [float(shares[places[0]]) for shares in made.probabilities(texts)]

    return score


def _parts(argument: str) -> tuple[str, str]:
    """The folder and the label, which may be empty."""
    if Path(argument).exists():
        return argument, ""
    path, _, label = argument.partition("#")
    return path, label
