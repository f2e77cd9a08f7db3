"""Text classifiers in Hugging Face folders: made from any model, loaded, and asked many texts at a time.

The logits are read at a text's last token, as transformers' own classes do it. Rows are padded to the right only:
with GPT-2, padding to the left would move every position.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from fledge import console
from fledge.errors import ModelError
from fledge.models.architecture import ModelConfig, build, refuse_nan
from fledge.models.folder import auto_model, find_model, own_config, read_config, read_tensors
from fledge.models.linear import quicken
from fledge.tokens import TextTokenizer

Text = tuple[str, str | None]  # and the second text of a pair

CONTEXT_DEFAULT = 512  # tokens, for a model whose config.json states no context
BATCH_TOKENS = 1024  # in a forward pass: larger ones no longer fit into a CPU's caches, and take 1.5 times as long
WINDOW = 1024  # texts that are sorted by length together while they stream by
THRESHOLD = "decision_threshold"  # our key in config.json


class Encoder:
    """Texts to ids as the classifier reads them: between document ends, and none longer than the context."""

    def __init__(self, tokenizer: TextTokenizer, context: int, pad_id: int) -> None:
        self.inner = Tokenizer.from_str(tokenizer.inner.to_str())
        self.inner.encode_special_tokens = True
        if not self.inner.num_special_tokens_to_add(False):
            self.inner.post_processor = _framed(tokenizer, pad_id)
        self.context = context
        self.cut("right")
        self.num_cut = 0  # texts so far that were longer than the context

    def cut(self, side: Literal["left", "right"]) -> None:
        """From now on leave out the beginning or the end of what is too long."""
        self.inner.enable_truncation(self.context, direction=side)

    def encode(self, texts: Sequence[Text]) -> list[list[int]]:
        """The ids of each text, with those that frame it; what does not fit is left out and counted."""
        pairs = [text if pair is None else (text, pair) for text, pair in texts]
        encodings: list[Encoding] = self.inner.encode_batch(pairs, add_special_tokens=True)
        self.num_cut += sum(bool(encoding.overflowing) for encoding in encodings)
        return [encoding.ids for encoding in encodings]


def _framed(tokenizer: TextTokenizer, pad_id: int) -> TemplateProcessing:
    """Document ends before, between and behind texts; none behind where they also stand for padding."""
    end = tokenizer.end_of_text_id
    name = str(tokenizer.inner.id_to_token(end))
    last = "" if end == pad_id else f" {name}"
    return TemplateProcessing(
        single=f"{name} $A{last}", pair=f"{name} $A {name} $B{last}", special_tokens=[(name, end)]
    )


@dataclass
class Classifier:
    """A model that gives each text a probability for every label."""

    model: Any  # transformers' class for sequence classification; one that was loaded only to ask, perhaps ours
    tokenizer: TextTokenizer
    encoder: Encoder
    labels: list[str]
    threshold: float | None = None  # probability of the second of two labels from which on it is chosen

    @property
    def pad_id(self) -> int:
        """The id that fills up rows; never the last id of a text."""
        return int(self.model.config.pad_token_id)

    def probabilities(self, texts: Iterable[Text], batch_tokens: int = BATCH_TOKENS) -> Iterator[np.ndarray]:
        """For each text in order its probability of every label, float32 (C,); reads ahead some hundred texts.

        Args:
            batch_tokens: at most in one forward pass, padding included; changes no result.
        """
        stream = iter(texts)
        while window := list(itertools.islice(stream, WINDOW)):
            logits_NC = torch.from_numpy(self.logits(self.encoder.encode(window), batch_tokens))
            yield from logits_NC.softmax(-1).numpy()

    def logits(self, ids: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """float32 (N, C) logits of encoded texts; the model is put into evaluation mode.

        Raises:
            ModelError: they are not finite.
        """
        found_NC = np.empty((len(ids), len(self.labels)), dtype=np.float32)
        self.model.eval()
        device = next(self.model.parameters()).device
        with torch.no_grad(), console.progress("asking the classifier", len(ids), "texts") as bar:
            for rows in by_length([len(row) for row in ids], batch_tokens):
                batch_BT, is_real_BT = pad([ids[row] for row in rows], self.pad_id)
                output = self.model(input_ids=batch_BT.to(device), attention_mask=is_real_BT.to(device))
                found_NC[rows] = output.logits.float().cpu().numpy()
                bar.advance(len(rows))
        refuse_nan(found_NC.sum())
        return found_NC

    def choose(self, probabilities: np.ndarray) -> np.ndarray:
        """The number of the label chosen for each row of (N, C) probabilities."""
        if self.threshold is None:
            return probabilities.argmax(-1)
        return (probabilities[:, 1] >= self.threshold).astype(int)

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' `pipeline("text-classification")` loads."""
        if self.threshold is not None:
            setattr(self.model.config, THRESHOLD, self.threshold)
        self.model.save_pretrained(folder)
        inner = Tokenizer.from_str(self.encoder.inner.to_str())
        roles = self.tokenizer.roles | {"pad_token": str(inner.id_to_token(self.pad_id))}
        TextTokenizer(inner, roles, self.tokenizer.chat_template).save(folder)


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length, each of at most `batch_tokens` with padding (or a single row)."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, int64 (B, T), filled up to the right to the longest of them, and 1 for what is no filling."""
    batch_BT = torch.full((len(ids), max(map(len, ids))), pad_id)
    is_real_BT = torch.zeros_like(batch_BT)  # by length: a text may begin with the id that pads
    for row, is_real, own in zip(batch_BT, is_real_BT, ids, strict=True):
        row[: len(own)] = torch.tensor(own)
        is_real[: len(own)] = 1
    return batch_BT, is_real_BT


def load(path: str | Path, device: str = "cpu", is_reward: bool = False) -> Classifier:
    """The classifier in a run or model folder, or of a hub name, ready to be asked.

    Args:
        is_reward: it may be a reward model, which has one label, and whose probability of that is always 1.
    Raises:
        ModelError: no model, not such a classifier, or a damaged one.
    """
    folder = find_model(path)
    content = read_config(folder)
    kinds = content.get("architectures") or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            f"{folder}: holds a {', '.join(kinds) or 'model without a head'}, not a classifier; "
            f"make one with `fledge finetune classify {path} --data ...`"
        )
    default = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers does not write these two
    names = {int(number): name for number, name in content.get("id2label", default).items()}
    labels = [names[number] for number in sorted(names)]
    if len(labels) == 1 and not is_reward:
        raise ModelError(f"{folder}: a reward model, which has no labels to choose from; use fledge rlhf score {path}")
    shape = own_config(folder, content) if content.get("pad_token_id") is not None else None
    if shape is None:
        model = _from_pretrained(folder, device)
    else:
        model = OwnClassifier(folder, shape, content["pad_token_id"]).to(device).eval()
    return _assembled(model, folder, labels, content.get(THRESHOLD))


@dataclass(frozen=True)
class Output:
    """What transformers' classifiers give, as far as it is used here."""

    logits: torch.Tensor


class OwnClassifier(torch.nn.Module):
    """A saved classifier with our own body, to ask: faster than transformers' class, which is not imported."""

    def __init__(self, folder: Path, shape: ModelConfig, pad_id: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=pad_id, max_position_embeddings=shape.context)
        state = read_tensors(folder, shape)
        weight = state.pop("score.weight", None)
        if weight is None:
            raise ModelError(f"{folder}: weights are missing or of another shape: score.weight")
        # There is no language-model head, so none that differs from the embeddings.
        self.body = build(dataclasses.replace(shape, tie_embeddings=True), seed=None)
        self.body.load_hf_state(state, str(folder))
        self.score = torch.nn.Linear(shape.width, len(weight), bias=False)
        self.score.weight.data = weight
        self.float()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Output:
        """The logits (B, C) of rows padded to the right, where causal attention needs no mask."""
        hidden_BTD = self.body.hidden(input_ids)
        last_B = attention_mask.sum(1) - 1
        return Output(self.score(hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]))


def from_base(path: str | Path, labels: Sequence[str]) -> Classifier:
    """A classifier with the body of any model and a new head; seed torch before, as the head is drawn.

    Raises:
        ModelError: no model, or transformers has no classifier of its architecture.
    """
    folder = find_model(path)
    numbered = dict(enumerate(labels))
    model = _from_pretrained(
        folder,
        "cpu",
        num_labels=len(labels),
        id2label=numbered,
        label2id={name: number for number, name in numbered.items()},
        problem_type="single_label_classification" if len(labels) > 1 else "regression",
    )
    return _assembled(model, folder, list(labels), None)


def _assembled(model: Any, folder: Path, labels: list[str], threshold: float | None) -> Classifier:
    tokenizer = TextTokenizer.from_folder(folder)
    config = model.config
    if config.pad_token_id is None:
        role = tokenizer.roles.get("pad_token")
        found = tokenizer.inner.token_to_id(role) if role else None
        config.pad_token_id = tokenizer.end_of_text_id if found is None else found
    context = getattr(config, "max_position_embeddings", None) or CONTEXT_DEFAULT
    encoder = Encoder(tokenizer, context, config.pad_token_id)
    return Classifier(model, tokenizer, encoder, labels, threshold)


def head(model: Any) -> torch.nn.Linear:
    """The layer that makes the logits.

    Raises:
        ModelError: it is called otherwise than transformers' classifiers call it.
    """
    for name in ("score", "classifier"):
        if isinstance(found := getattr(model, name, None), torch.nn.Linear):
            return found
    raise ModelError(f"{type(model).__name__}: its head is no plain layer called score or classifier")


def _from_pretrained(folder: Path, device: str, **settings: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    kind = read_config(folder)["model_type"]
    if kind not in KNOWN:
        raise ModelError(f"{folder}: transformers has no text classifier of the type {kind}")
    new_weights = r"(score|classifier|pooler)\b" if settings else "$^"
    model = auto_model("SequenceClassification", folder, torch.float32, new_weights, **settings)
    return quicken(model.to(device).eval())
