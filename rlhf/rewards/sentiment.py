"""`sentiment:CLASSIFIER` or `sentiment:CLASSIFIER#LABEL`: the probability that a classifier gives to a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import DataError
from fledge.models import classifier
from fledge.models.classifier import Classifier
from fledge.models.folder import find_model

USAGE = "sentiment:runs/reviews is a classifier of `fledge finetune classify`, sentiment:runs/reviews#pos its label"


def folder_of(argument: str) -> Path:
    """The folder of the classifier."""
    return find_model(_parts(argument)[0])


@dataclass(frozen=True)
class Sentiment:
    """The probability of one label."""

    made: Classifier
    place: int  # of the label

    @property
    def num_cut(self) -> int:
        """How many texts so far were longer than the classifier's context."""
        return self.made.encoder.num_cut

    def __call__(self, rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
        """See `make`."""
        asked = [row["prompt"] if isinstance(row["prompt"], str) else "" for row in rows]
        texts = [(prompt + answer, None) for prompt, answer in zip(asked, answers, strict=True)]
        return [float(shares[self.place]) for shares in self.made.probabilities(texts)]


def make(argument: str, device: str) -> Sentiment:
    """A reward from a classifier: of a plain prompt with its answer as one text, of a conversation of the answer.

    What is too long for the classifier's context loses its beginning: the answer is at the end.
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
    made.encoder.cut("left")
    return Sentiment(made, places[0])


def _parts(argument: str) -> tuple[str, str]:
    """The folder and the label, which may be empty."""
    if Path(argument).exists():
        return argument, ""
    path, _, label = argument.partition("#")
    return path, label
