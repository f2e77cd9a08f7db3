"""`fledge finetune predict`: a label for each text, as the texts stream by."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.config import PredictConfig
from fledge import atomic, console, device
from fledge.data import labelled, rows, sources
from fledge.errors import DataError, UsageError
from fledge.models import classifier
from fledge.models.classifier import Text


def run(settings: PredictConfig) -> dict[str, Any]:
    """Write or show one JSON object a text, in order; see PredictConfig.

    Raises:
        DataError: a row has no text, or `--out` exists.
        UsageError: neither or both of `--input` and `--text` are given.
    """
    if bool(settings.input) == bool(settings.text):
        raise UsageError("give texts: --input FILE or --text '...'")
    found = sources.expand(settings.input) if settings.input else []
    made = classifier.load(settings.model, device.resolve_device(settings.device, "--device"))
    texts: Iterator[Text] = _texts(found) if found else ((text, None) for text in settings.text)
    count = 0
    with writer(settings.out) as write, console.progress("predicting", unit="texts") as bar:
        for probability_C in made.probabilities(texts, settings.batch_tokens):
            (chosen,) = made.choose(probability_C[None])
            shares = [round(float(share), 6) for share in probability_C]
            answer = {"label": made.labels[chosen], "probabilities": dict(zip(made.labels, shares, strict=True))}
            write(json.dumps(answer, ensure_ascii=False))
            count += 1
            bar.advance()
    if made.encoder.num_cut:
        console.warn(f"{made.encoder.num_cut} texts are longer than the context; their ends were not read")
    return {"model": str(settings.model), "out": settings.out, "rows": count, "cut": made.encoder.num_cut}


def _texts(found: list[sources.Source]) -> Iterator[Text]:
    """The texts of all rows; an answer a row is promised, so a row without a text stops the run."""
    for row in itertools.chain.from_iterable(rows.iterate(source, lambda line: {"text": line}) for source in found):
        if isinstance(row, rows.Reject):
            raise DataError(f"{row}; each row gets a label, so mend it or leave it out")
        try:
            yield labelled.text_of(row.values)
        except ValueError as error:
            raise DataError(f"{row.where}: {error}; each row gets a label, so mend it") from None


@contextlib.contextmanager
def writer(out: str | None) -> Iterator[Any]:
    """What writes a line: to stdout, or to a file that is there when all is written, or not at all."""
    if out is None:
        yield console.result
        return
    path = Path(out)
    if path.exists():
        raise DataError(f"{path}: exists already and is not overwritten; choose another --out")
    partial = atomic.partial_path(path)
    with atomic.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8", newline="\n") as file:
                yield lambda line: print(line, file=file)
            atomic.sync_file(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
