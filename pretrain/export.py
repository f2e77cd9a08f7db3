"""What a pretraining run leaves behind: lineage, the model folder with its card, the curve, the summary."""

import json
from pathlib import Path
from typing import Any

from fledge import console, lineage, model_card, plots, processes
from fledge.errors import RunError
from fledge.metrics_log import read_metrics
from fledge.models import folder as model_folder
from fledge.models.architecture import LanguageModel
from fledge.rundir import RunFolder
from pretrain.config import TrainConfig
from pretrain.floors import village_floors
from pretrain.parent import Parent
from pretrain.session import Session
from pretrain.training_data import TrainingData
from pretrain.validation import Validation

BEFORE = "before.json"  # what a parent scored before step 0; on disk, so that a resumed run still knows it


# Of the parent's own validation text, evenly spread, the same before and after: all of it would take longer than
# many an adaptation.
PARENT_WINDOWS = 256


def record_lineage(folder: RunFolder, settings: TrainConfig, data: TrainingData, origin: Parent | None) -> None:
    """Write parents, data and tokenizer of a new run to lineage.json."""
    if not processes.is_first():
        return
    parents = [lineage.parent(data.path, "shards")]
    if origin:
        parents.append(lineage.parent(origin.path, "model"))
    folder.add_lineage(
        parents=parents,
        tokenizer=data.tokenizer.fingerprint,
        data={"sources": data.facts.get("sources", []), "tokens": data.train.num_tokens},
    )


def open_shards(folder: RunFolder, path: str) -> TrainingData:
    """The shards of a run; of one that has begun, wherever they are now.

    Raises:
        RunError: they are gone, or changed since.
    """
    parents = lineage.read(folder.path).get("parents")
    if not parents:
        return TrainingData.open(path)
    found = Path(path) if Path(path).exists() else lineage.located(folder.path, parents[0])
    if not found.exists():
        raise RunError(f"{folder.path}: its shards are no longer in {path}; say with --data where they are")
    data = TrainingData.open(str(found))
    content = processes.same(lineage.sha256_folder(data.path) if processes.is_first() else None)
    lineage.require_same(folder.path, {"parents": [parents[0] | {"sha256": content}, *parents[1:]]})
    return data


def measure_before(
    folder: RunFolder, session: Session, validation: Validation, origin: Parent | None
) -> dict[str, Any]:
    """A parent's bits per byte before step 0, on the new text and on its own; nothing for a new model."""
    file = folder.path / BEFORE
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    if origin is None:
        return {}
    before: dict[str, Any] = {"validation_bits_per_byte_before": validation.measure(session.model).bits_per_byte}
    if origin.data:
        before["parent_data"] = str(origin.data.path)
        before["parent_validation_bits_per_byte_before"] = _on_parent_data(session, before["parent_data"])
    folder.write(BEFORE, json.dumps(before))
    return before


def finish(
    folder: RunFolder, session: Session, validation: Validation, data: TrainingData, before: dict[str, Any]
) -> dict[str, Any]:
    """Publish the model, measure it on all of the validation text, draw the curve, write the summary.

    Returns:
        the `--json` object of `pretrain train`.
    """
    held_out = validation.measure(session.model)
    metrics = read_metrics(folder.path)
    result = {
        "steps": session.counters.step,
        "parameters": session.num_parameters,
        "train_loss": next((m["loss"] for m in reversed(metrics) if "loss" in m), None),
        "validation_loss": held_out.loss,
        "validation_bits_per_byte": held_out.bits_per_byte,
        "validation_bytes": held_out.text_bytes,
        "loop_s": round(session.counters.elapsed_s, 3),
        **village_floors(data),
        **before,
    }
    if "parent_data" in before:
        result["parent_validation_bits_per_byte"] = _on_parent_data(session, before["parent_data"])
    with session.engine.whole_weights() as model:
        if processes.is_first():
            _publish(folder, model, data, result, metrics)
    return result


def _publish(
    folder: RunFolder, model: LanguageModel, data: TrainingData, result: dict[str, Any], metrics: list[dict[str, Any]]
) -> None:
    with folder.publish("model") as partial:
        model_folder.save_model(model, partial)
        data.tokenizer.save(partial)
        card = model_card.write(folder.path.name, lineage.read(folder.path), _lines(result, data))
        (partial / "README.md").write_text(card, encoding="utf-8")
    levels = {name.split("_")[1] + " floor": value for name, value in result.items() if name.startswith("floor_")}
    if data.tokens_per_byte is None:  # both then with their document ends, which the floors are without
        plots.loss_curve(metrics, folder.path / "loss.png", metric="loss")
    else:
        plots.loss_curve(metrics, folder.path / "loss.png", levels)
    folder.write_summary(_summary(folder, result, data))


def _on_parent_data(session: Session, path: str) -> float:
    old = TrainingData.open(path)
    settings = session.config
    windows = old.validation_windows(settings, session.engine.evaluation)
    return windows.measure(session.model, PARENT_WINDOWS).bits_per_byte


def _lines(result: dict[str, Any], data: TrainingData) -> list[str]:
    """The results in sentences, each with what it was measured on."""
    lines = [
        f"validation text ({result['validation_bytes']:,} bytes): {result['validation_loss']:.4f} nats/token, "
        f"{result['validation_bits_per_byte']:.4f} bits per byte",
        f"training loss at the end: {result['train_loss']:.4f} nats/token",
    ]
    if "floor_world_bits_per_byte" in result:
        lines.append(
            f"known floors of this text: {result['floor_world_bits_per_byte']:.4f} bits per byte for who knows the "
            f"village, {result['floor_grammar_bits_per_byte']:.4f} for who knows the grammar only"
        )
    if "validation_bits_per_byte_before" in result:
        lines.append(f"the parent on the same text: {result['validation_bits_per_byte_before']:.4f} bits per byte")
    if "parent_validation_bits_per_byte" in result:
        lines.append(
            f"on the parent's own text (at most {PARENT_WINDOWS} windows): "
            f"{result['parent_validation_bits_per_byte']:.4f} bits per byte, "
            f"{result['parent_validation_bits_per_byte_before']:.4f} before"
        )
    return lines


def _summary(folder: RunFolder, result: dict[str, Any], data: TrainingData) -> str:
    lines = [f"# {folder.path}", ""]
    lines += [
        f"{console.format_count(result['parameters'])} parameters, {result['steps']} steps in "
        f"{console.format_seconds(result['loop_s'])}",
        "",
    ]
    lines += [f"- {line}" for line in _lines(result, data)]
    last = [sample for sample in folder.samples() if sample["step"] == result["steps"]]
    if last:
        lines += ["", "## Samples", ""]
        lines += [f"> {sample['prompt']}{sample['text']}".replace("\n", "\n> ") + "\n" for sample in last]
    lines += ["", f"Model: {folder.path}/model; curve: {folder.path}/loss.png"]
    return "\n".join(lines)
