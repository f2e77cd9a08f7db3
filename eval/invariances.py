"""What must not change a model's numbers, and what its tokenizer and template must keep: measured, one a function.

Each check is a function from a `Case` to what it measured and the most that is allowed, or to why it does not apply;
its docstring is what it checks. Shapes: B rows, T tokens, V vocabulary.
"""

import copy
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.engine import TorchEngine
from fledge.models import adapters, decoding
from fledge.models.folder import load_model
from fledge.models.generation import context_of
from fledge.models.loss import IGNORED
from fledge.tokens import TextTokenizer
from tokenizer import chat
from tokenizer.chat import Message

# Sums in another order differ by 1e-6 to 1e-4 in float32; a wrong mask or position by 1e-2 and more.
NATS = 1e-3
SHARE = 1e-3  # of an update
PADDED = 7  # tokens of padding, and documents' odd lengths


@dataclass(frozen=True)
class Measured:
    """A difference, and the most it may be."""

    value: float
    limit: float
    unit: str


Outcome = Measured | str  # a text: why the check does not apply


@dataclass
class Case:
    """The model and data that are checked."""

    folder: Path
    model: Any
    tokenizer: TextTokenizer
    texts: list[str]
    conversations: Sequence[Sequence[Message]]
    max_tokens: int

    @cached_property
    def rows(self) -> list[list[int]]:
        """The ids of the texts' beginnings, of different lengths."""
        end = self.tokenizer.end_of_text_id
        rows = [[end, *ids][: self.max_tokens - n % 5] for n, ids in enumerate(self.tokenizer.encode_batch(self.texts))]
        return [row for row in rows if len(row) > 1]

    @cached_property
    def alone(self) -> list[Tensor]:
        """Log-probabilities (T, V) of each row by itself: what all else must equal."""
        return [_logprobs(self.model, torch.tensor([row]))[0] for row in self.rows]

    @cached_property
    def transformers_model(self) -> Any:
        """The folder as transformers loads it, in float32 on the CPU."""
        import transformers

        transformers.logging.disable_progress_bar()
        return transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).eval()


def batch_size(case: Case) -> Outcome:
    """A text scores the same alone and among others."""
    ids_BT = _padded(case.rows)
    return _against_alone(case, _logprobs(case.model, ids_BT), [0] * len(case.rows))


def padding_length(case: Case) -> Outcome:
    """More padding to the right changes nothing."""
    return _against_alone(case, _logprobs(case.model, _padded(case.rows, PADDED)), [0] * len(case.rows))


def padding_side(case: Case) -> Outcome:
    """Padding to the left, marked as such, changes nothing."""
    ids_BT, is_padding_BT = decoding.left_padded(case.rows, torch.device("cpu"))
    longest = ids_BT.shape[1]
    return _against_alone(case, _logprobs(case.model, ids_BT, is_padding_BT), [longest - len(row) for row in case.rows])


def cache(case: Case) -> Outcome:
    """Token by token, with keys and values kept, as all at once."""
    steps = min(map(len, case.rows)) // 2
    starts = [len(row) - steps for row in case.rows]
    decoder = decoding.decoder(
        case.model, [row[:n] for row, n in zip(case.rows, starts, strict=True)], max(map(len, case.rows))
    )
    worst = 0.0
    with torch.inference_mode():
        logits_BV = decoder.start()
        for step in range(steps):
            logprobs_BV = logits_BV.log_softmax(-1)
            for row, start in enumerate(starts):
                worst = max(worst, _distance(logprobs_BV[row], case.alone[row][start + step - 1]))
            if step + 1 < steps:
                logits_BV = decoder.step(
                    torch.tensor([row[n + step] for row, n in zip(case.rows, starts, strict=True)])
                )
    return Measured(worst, NATS, "nats")


def packing(case: Case) -> Outcome:
    """Texts packed into one row, each with positions of its own, do not see each other (as fine-tuning packs them)."""
    model = case.transformers_model
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no positions; fine-tune it without packing"
    packed, rows = list[int](), list[int]()
    for number, row in enumerate(case.rows):
        if len(packed) + len(row) <= context_of(model):
            packed, rows = packed + row, [*rows, number]
    positions = [place for number in rows for place in range(len(case.rows[number]))]
    with torch.inference_mode():
        logits_TV = model(
            input_ids=torch.tensor([packed]), position_ids=torch.tensor([positions]), use_cache=False
        ).logits[0]
    pieces = logits_TV.float().log_softmax(-1).split([len(case.rows[number]) for number in rows])
    return Measured(max(map(_distance, pieces, [case.alone[n] for n in rows])), NATS, "nats")


def accumulation(case: Case) -> Outcome:
    """A step on all texts at once and one on text after text change the weights alike."""
    moved = []
    for size in (len(case.rows), 1):
        model = copy.deepcopy(case.model)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        engine = TorchEngine(_WithLoss(model), torch.optim.SGD(model.parameters(), lr=1.0), 0.0, "cpu", torch.float32)
        before = torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
        batches = [case.rows[n : n + size] for n in range(0, len(case.rows), size)]
        engine.step([(_padded(batch)[:, :-1], _padded(batch, filler=IGNORED)[:, 1:]) for batch in batches])
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    difference = float((moved[0] - moved[1]).norm() / moved[0].norm())
    return Measured(difference, SHARE, "of the update")


def lora_merge(case: Case) -> Outcome:
    """Low-rank adapters merged into the weights say what they said beside them."""
    adapted = adapters.add_lora(
        copy.deepcopy(case.transformers_model), rank=4, alpha=None, dropout=0.0, targets=["all-linear"], seed=0
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # they begin at zero, and then nothing is merged
                parameter.normal_(std=0.02)
    beside = [_logprobs(adapted, torch.tensor([row]))[0] for row in case.rows]
    return _between(case, adapted.merge_and_unload(), beside)


def transformers_parity(case: Case) -> Outcome:
    """fledge and transformers read the same model from the folder."""
    return _between(case, case.transformers_model, case.alone)


def saved_and_loaded(case: Case) -> Outcome:
    """What transformers saves, fledge loads as the same model."""
    with tempfile.TemporaryDirectory() as name:
        case.transformers_model.save_pretrained(name)
        again = load_model(name)
    return _between(case, again, case.alone)


def token_bytes(case: Case) -> Outcome:
    """The bytes of a text's tokens are the text's bytes."""
    wrong = 0
    for text in case.texts:
        found, expected = case.tokenizer.decode_bytes(case.tokenizer.encode(text)), text.encode()
        wrong += abs(len(found) - len(expected)) + sum(a != b for a, b in zip(found, expected, strict=False))
    return Measured(wrong, 0, "bytes")


def template_round_trip(case: Case) -> Outcome:
    """What people said comes out of the chat template as it went in, and closes no turn, whatever they typed."""
    if case.tokenizer.chat_template is None:
        return "the tokenizer has no chat template"
    marker = "".join(case.tokenizer.special_ids)
    wrong = 0
    for messages in case.conversations:
        typed = [{**message, "content": f"{message['content']} {marker}"} for message in messages]
        ids, plain = chat.render(case.tokenizer, typed).ids, chat.render(case.tokenizer, messages).ids
        text = case.tokenizer.decode(ids, keep_special=True)
        for message in typed:
            _, found, text = text.partition(message["content"])
            wrong += not found
        special = set(case.tokenizer.special_ids.values())
        wrong += sum(i in special for i in ids) != sum(i in special for i in plain)
    return Measured(wrong, 0, "messages")


def end_token_supervised(case: Case) -> Outcome:
    """Training on conversations teaches the end of each answer, and nothing that the user said."""
    template = case.tokenizer.chat_template
    if template is None:
        return "the tokenizer has no chat template"
    if not chat.has_generation_blocks(template):
        return "the template does not mark what the assistant says; training marks it by its own rule"
    special, wrong = set(case.tokenizer.special_ids.values()), 0
    for messages in case.conversations:
        rendered = chat.render(case.tokenizer, messages)
        learned = [i for i, is_learned in zip(rendered.ids, rendered.is_supervised, strict=True) if is_learned]
        answers = sum(message["role"] == "assistant" for message in messages)
        wrong += sum(i in special for i in learned) != answers or learned[-1] not in special
    return Measured(wrong, 0, "conversations")


# Check -> the likely cause where it fails.
CHECKS: dict[Callable[[Case], Outcome], str] = {
    batch_size: "rows of a batch see each other, or padding: the attention mask or the positions are wrong",
    padding_length: "attention is not causal, or something is normalised over the whole row",
    padding_side: "positions are counted over padding, or padding is attended to; pad to the right",
    cache: "positions or masks of cached tokens are off by some places",
    packing: "texts in one pack see each other; fine-tune without packing",
    accumulation: "losses are averaged by microbatch, not by token",
    lora_merge: "some adapted layer computes otherwise than its merged weights (tied or shared weights)",
    transformers_parity: "config.json says something that one of the two does not implement",
    saved_and_loaded: "a weight is not saved, or is saved under a name that means another one",
    token_bytes: "the tokenizer changes text (lower case, accents, spaces): bits per byte would be wrong",
    template_round_trip: "the template strips or changes text, or takes typed markers for its own",
    end_token_supervised: "the end of turn stands outside of {% generation %}: the model would never stop",
}


class _WithLoss(torch.nn.Module):
    """Any language model as the engine calls one: the mean loss over its targets."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = _logits(self.model, ids_BT, None)
        return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)


def _logits(model: Any, ids_BT: Tensor, is_padding_BT: Tensor | None) -> Tensor:
    """float32 (B, T, V), from our models and transformers'."""
    if hasattr(model, "hidden"):
        ours: Tensor = model.logits(model.hidden(ids_BT, is_padding_BT=is_padding_BT))
        return ours
    is_real_BT = torch.ones_like(ids_BT) if is_padding_BT is None else (~is_padding_BT).long()
    given: dict[str, Any] = {"attention_mask": is_real_BT, "use_cache": False}
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" in inspect.signature(inner.forward).parameters:
        given["position_ids"] = (is_real_BT.cumsum(1) - 1).clamp(min=0)
    theirs: Tensor = model(input_ids=ids_BT, **given).logits.float()
    return theirs


def _logprobs(model: Any, ids_BT: Tensor, is_padding_BT: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        return _logits(model, ids_BT, is_padding_BT).log_softmax(-1)


def _padded(rows: Sequence[Sequence[int]], more: int = 0, filler: int = 0) -> Tensor:
    """Rows filled up to the right."""
    longest = max(map(len, rows)) + more
    return torch.tensor([list(row) + [filler] * (longest - len(row)) for row in rows])


def _against_alone(case: Case, logprobs_BTV: Tensor, starts: Sequence[int]) -> Measured:
    """The largest difference from each row by itself; row i begins at place starts[i]."""
    distances = [
        _distance(logprobs_BTV[i, start : start + len(case.rows[i])], case.alone[i]) for i, start in enumerate(starts)
    ]
    return Measured(max(distances), NATS, "nats")


def _between(case: Case, model: Any, expected: Sequence[Tensor]) -> Measured:
    """The largest difference of a model, on each row by itself, from what is expected."""
    found = (_logprobs(model, torch.tensor([row]))[0] for row in case.rows)
    return Measured(max(map(_distance, found, expected)), NATS, "nats")


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference of log-probabilities, over tokens that are not hopeless in both."""
    return float((one.clamp(min=-20) - other.clamp(min=-20)).abs().max())
