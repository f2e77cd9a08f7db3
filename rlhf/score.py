"""`fledge rlhf score`: the reward of each answer, as the rows stream by."""

import itertools
import json
from typing import Any

from finetune.predict import writer
from fledge import console, device
from fledge.data import prompts, rows, sources
from fledge.errors import DataError
from rlhf import scoring
from rlhf.config import ScoreConfig

WINDOW = 1024  # rows that are scored together: a model takes them by length


def run(settings: ScoreConfig) -> dict[str, Any]:
    """Write or show one JSON object a row, in order; see ScoreConfig.

    Raises:
        DataError: a row has no prompt or no answer, or `--out` exists.
    """
    found = sources.expand(settings.input)
    reward = scoring.open_reward(settings.reward, device.resolve_device(settings.device, "--device"))
    stream = itertools.chain.from_iterable(map(rows.iterate, found))
    scores = 0.0
    count = 0
    with writer(settings.out) as write, console.progress("scoring", unit="rows") as bar:
        while window := [_answered(row, settings.answer_field) for row in itertools.islice(stream, WINDOW)]:
            for score in reward.score(*zip(*window, strict=True)):
                write(json.dumps({"score": score}))
                scores += score
            count += len(window)
            bar.advance(len(window))
    mean = scores / count if count else None
    return {"reward": settings.reward, "out": settings.out, "rows": count, "mean": mean, "cut": reward.num_cut}


def _answered(row: rows.Row | rows.Reject, field: str) -> tuple[dict[str, Any], str]:
    """A row with its `prompt`, and the answer to score; a score a row is promised, so a bad row stops the run."""
    if isinstance(row, rows.Reject):
        raise DataError(f"{row}; each row gets a score, so mend it or leave it out")
    try:
        asked = prompts.of_row(row.values)
    except ValueError as error:
        raise DataError(f"{row.where}: {error}; each row gets a score, so mend it") from None
    answer = row.values.get(field, asked.reference)
    if not isinstance(answer, str):
        raise DataError(f"{row.where}: no answer; name its column with --answer-field, now '{field}'")
    return {"prompt": asked.plain} | row.values, answer
