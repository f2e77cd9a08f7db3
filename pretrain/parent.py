"""The model that a run continues from (--init), and what the run does to it on its own old domain."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge import console, lineage
from fledge.errors import FledgeError, ModelError
from fledge.models import folder
from fledge.models.architecture import LanguageModel
from fledge.tokens import TextTokenizer
from pretrain.config import TrainConfig
from pretrain.training_data import TrainingData


@dataclass
class Parent:
    """A parent model, its tokenizer, and its own shards where they can still be found."""

    path: Path
    model: LanguageModel
    data: TrainingData | None


def load(config: TrainConfig, data: TrainingData) -> Parent:
    """Load the parent that `--init` names.

    Raises:
        ModelError: no model there, of an architecture that can't be trained, or of another tokenizer than the shards.
    """
    assert config.init is not None
    path = folder.find_model(config.init)
    model = folder.load_model(path, device="cpu")
    if not isinstance(model, LanguageModel):
        raise ModelError(f"{path}: pretraining continues gpt2, qwen3 and nanochat models; this is another type")
    own = TextTokenizer.from_folder(path)
    if own.fingerprint != data.tokenizer.fingerprint:
        raise ModelError(
            f"{path}: its tokenizer ({model.config.vocab_size} tokens) is not that of the shards {data.path} "
            f"({data.tokenizer.vocab_size} tokens); prepare them with --tokenizer {config.init}"
        )
    return Parent(path, model, _old_data(path, own))


def model_settings(config: TrainConfig, model: LanguageModel) -> dict[str, Any]:
    """The group `model` of a run that continues a parent: the parent's shape, and a context at most the parent's."""
    shape = model.config
    return {
        "model.architecture": shape.model_type,
        "model.context": min(shape.context, config.model.context),
        "model.layers": shape.layers,
        "model.width": shape.width,
        "model.heads": shape.heads,
        "model.kv_heads": shape.kv_heads,
        "model.dropout": shape.dropout,
        "model.tie_embeddings": shape.tie_embeddings,
    }


def _old_data(model_path: Path, tokenizer: TextTokenizer) -> TrainingData | None:
    """The shards that the parent was trained on; None, aloud, where they are gone or it is no run of ours."""
    try:
        run = model_path.parent
        shards = next(p for p in lineage.read(run)["parents"] if p["kind"] == "shards")
        data = TrainingData.open(str(lineage.located(run, shards)))
    except (FledgeError, StopIteration) as error:
        why = str(error) or "its run names none"
        console.note(f"the parent's own validation text can't be measured: {why}")
        return None
    return data if data.tokenizer.fingerprint == tokenizer.fingerprint else None
