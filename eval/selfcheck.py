"""`fledge eval selfcheck`: does a model keep the promises that training and evaluation rely on?"""

import os
from itertools import islice
from pathlib import Path
from typing import Any

from eval import invariances
from eval.config import SelfcheckConfig
from eval.invariances import Case, Measured
from fledge import console
from fledge.data import prompts, rows, sources
from fledge.data.messages import Message
from fledge.data.text import TextReader
from fledge.errors import DataError, FledgeError, RunFailed
from fledge.models import generation
from fledge.models.folder import find_model
from fledge.models.loaded import load

_ASKED: list[Message] = [
    {"role": "user", "content": "Where does the miller live?"},
    {"role": "assistant", "content": "By the river."},
]


def run(settings: SelfcheckConfig) -> dict[str, Any]:
    """Check a model on some texts; see SelfcheckConfig.

    Raises:
        RunFailed: a check failed.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # PEFT imports DeepSpeed, which would tell what it found
    folder = find_model(settings.model)
    loaded = load(folder, device="cpu")
    texts, conversations = _read(settings)
    longest = min(settings.max_tokens, generation.context_of(loaded.model) - invariances.PADDED)
    case = Case(folder, loaded.model, loaded.tokenizer, texts, conversations or [_ASKED], longest)
    if len(case.rows) < 2:
        raise DataError(f"{', '.join(settings.data)}: fewer than two texts with a token in them")
    found: dict[str, dict[str, Any]] = {}
    with console.progress("selfcheck", len(invariances.CHECKS)) as bar:
        for check, cause in invariances.CHECKS.items():
            try:
                outcome = check(case)
            except FledgeError as error:  # why it does not apply
                outcome = str(error)
            found[check.__name__] = _told(check.__doc__ or "", outcome, cause)
            bar.advance(1, check.__name__)
    console.result(_table(found, folder))
    failed = [name for name, told in found.items() if told["passed"] is False]
    if failed:
        causes = "; ".join(f"{name}: {found[name]['cause']}" for name in failed)
        raise RunFailed(f"{settings.model}: {len(failed)} of {len(found)} checks failed: {causes}")
    return {"model": str(folder), "out": None, "checks": found}


def _told(claim: str, outcome: invariances.Outcome, cause: str) -> dict[str, Any]:
    if isinstance(outcome, Measured):
        passed = outcome.value <= outcome.limit
        return {"claim": claim, "passed": passed, **vars(outcome), "cause": None if passed else cause}
    return {"claim": claim, "passed": None, "value": None, "limit": None, "unit": "", "cause": outcome}


def _read(settings: SelfcheckConfig) -> tuple[list[str], list[list[Message]]]:
    """Texts, and conversations where the data has them."""
    texts: list[str] = []
    conversations: list[list[Message]] = []
    for source in sources.expand(settings.data):
        if source.format in ("text", "html"):
            documents = (document.text for document in TextReader([source]).documents())
            # One long text gives several pieces.
            texts += islice((p for text in documents for p in text.split("\n\n") if p.strip()), settings.rows)
            continue
        for row in islice(rows.iterate(source), settings.rows):
            if isinstance(row, rows.Reject):
                console.warn(f"passed over {row}")
                continue
            try:
                prompt = prompts.of_row(row.values)
            except ValueError:
                texts.append("\n".join(value for value in row.values.values() if isinstance(value, str)))
                continue
            if prompt.reference:
                conversations.append([*prompt.messages, {"role": "assistant", "content": prompt.reference}])
            texts.append("\n".join([*(m["content"] for m in prompt.messages), prompt.reference or ""]))
    return texts[: settings.rows], conversations[: settings.rows]


def _table(found: dict[str, dict[str, Any]], folder: Path) -> str:
    words = {True: "pass", False: "FAIL", None: "n/a"}
    table = [
        [
            name,
            words[told["passed"]],
            "" if told["value"] is None else f"{told['value']:.2g} {told['unit']}",
            "" if told["limit"] is None else f"{told['limit']:g}",
            told["cause"] or told["claim"].split("\n")[0],
        ]
        for name, told in found.items()
    ]
    return f"{folder}\n\n" + console.table(table, ["check", "", "difference", "limit", "claim, or likely cause"])
