"""What a run that trains a parent notes before its first step, and the folder that it publishes after its last."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fledge import console, lineage, model_card, processes
from fledge.config import RunConfig
from fledge.errors import RunFailed
from fledge.models import adapters
from fledge.models import folder as model_folder
from fledge.models.classifier import Classifier
from fledge.models.generation import context_of
from fledge.rundir import RunFolder, require_disk
from fledge.tokens import TextTokenizer

BEFORE = "before.json"  # what the parent's own answers or losses were; a resumed run must still know it
PROVED_TOKENS = 64  # of each prompt, over which merged adapters are compared
MERGE_TOLERANCE = 1e-3  # of a logit: float32 over some dozen layers


def record(
    folder: RunFolder, settings: RunConfig, parent: Path, tokenizer: TextTokenizer, model: nn.Module, **facts: Any
) -> None:
    """Write parent, tokenizer and other facts to lineage.json; a resumed run must still find the same.

    Raises:
        RunError: it does not, or the disk has no room for a new run.
    """
    facts |= {
        "parents": [lineage.parent(parent, "model")],
        "tokenizer": tokenizer.fingerprint,
        "chat_template": lineage.sha256_text(tokenizer.chat_template or ""),
    }
    if folder.resumes_from:
        lineage.require_same(folder.path, facts)
    else:
        # Weights and two moments of what is trained, a checkpoint; one more while the oldest is not deleted, the best.
        each = 12 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        whole = 4 * sum(p.numel() for p in model.parameters())
        require_disk(folder.path, each * (settings.keep_checkpoints + 2) + whole, "the checkpoints and the model")
    folder.add_lineage(**facts)


def announce(parent: Path, model: nn.Module, settings: Any, what: str) -> None:
    """Say what is trained, and how long.

    Args:
        settings: with the groups `lora`, `batch` and `run`.
        what: its examples are, in the plural.
    """
    run, count, weights = settings.run, console.format_count, list(model.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    console.note(
        f"{parent}: {count(sum(p.numel() for p in weights))} parameters, {count(trained)} trained"
        + (f" (LoRA of rank {settings.lora.rank})" if settings.lora.rank else "")
    )
    steps = f"{run.max_steps} steps of {settings.batch.examples} {what}"
    console.note(f"{steps} ({run.device}, {run.dtype}, {run.threads} threads)")


def before(folder: RunFolder, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured of the parent before the first step, once; all processes measure, the first one writes.

    Raises:
        RunFailed: a resumed run has lost it.
    """
    file = folder.path / BEFORE
    if not file.is_file():
        if folder.resumes_from:
            raise RunFailed(f"{file}: missing; it was written before the first step. Start a new run")
        found = measure()
        processes.wait_for_all()
        folder.write(BEFORE, json.dumps(found))
        processes.wait_for_all()
    return dict(json.loads(file.read_text(encoding="utf-8")))


def write_rows(folder: RunFolder, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines into the run's folder."""
    folder.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def merge(made: Classifier, ids: Sequence[Sequence[int]]) -> dict[str, float]:
    """Put a classifier's adapters, if it has any, into its weights; how far that moved a logit of some texts."""
    if not hasattr(made.model, "merge_and_unload"):
        return {}
    unmerged = made.logits(ids)
    made.model = made.model.merge_and_unload()
    return {"merge_max_logit_difference": float(np.abs(made.logits(ids) - unmerged).max())}


def card(folder: RunFolder, partial: Path, lines: list[str]) -> None:
    """Write the model card of a folder that is to be published; the lines state what was measured."""
    text = model_card.write(folder.path.name, lineage.read(folder.path), lines)
    (partial / "README.md").write_text(text, encoding="utf-8")


def write(
    folder: Path, model: Any, tokenizer: TextTokenizer, stop_ids: Sequence[int], proving: Sequence[Sequence[int]]
) -> tuple[Any, dict[str, Any]]:
    """Write a transformers model, adapters merged in float32, and its tokenizer.

    Args:
        model: on any device; is on the CPU afterwards, and without adapters.
        stop_ids: ids that end an answer.
        proving: ids, with which merged adapters are proved to say the same.
    Returns:
        The model as loaded from the folder, and the proof where there were adapters: see `adapters.compare`.
    """
    import transformers

    model = model.to("cpu").float()
    written = None
    if hasattr(model, "merge_and_unload"):
        num_proved = min(PROVED_TOKENS, context_of(model) // 2)
        proving = [ids[:num_proved] for ids in proving]
        written = adapters.write(model, proving)
        model = model.merge_and_unload()
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=list(stop_ids), pad_token_id=tokenizer.special_ids.get(tokenizer.roles.get("pad_token", ""))
    )
    model.config.use_cache = True  # TRL turns it off
    model.save_pretrained(folder)
    (folder / model_folder.WEIGHTS).chmod((folder / model_folder.CONFIG).stat().st_mode)
    tokenizer.save(folder)
    saved = model_folder.load_model(folder)
    if written is None:
        return saved, {}
    proof = adapters.compare(written, adapters.write(saved, proving))
    if proof["merge_max_logit_difference"] > MERGE_TOLERANCE:
        console.warn(f"merged logits differ by {proof['merge_max_logit_difference']:.2g} from the adapter's")
    return saved, proof


def sentences(proof: dict[str, Any]) -> list[str]:
    """A proof in words; nothing where there were no adapters."""
    if "merge_max_logit_difference" not in proof:
        return []
    same = "the same" if proof["merge_same_greedy_tokens"] else "other"
    return [
        f"adapters merged: logits differ by at most {proof['merge_max_logit_difference']:.1g}, greedy answers "
        f"have {same} tokens"
    ]
