"""The one sampler: batched, exact log-probabilities, the same text alone or in a batch.

Chat, evaluation and PPO all sample here, from our models and from any causal language model of transformers.
Shapes: B rows, V vocabulary, N new tokens.
"""

import codecs
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fledge.errors import DataError
from fledge.models.architecture import refuse_nan
from fledge.models.decoding import decoder
from fledge.models.sampling import Sampling, choose, row_randomness
from fledge.tokens import TextTokenizer

__all__ = [
    "Completion",
    "Sampling",
    "Step",
    "complete",
    "continue_texts",
    "generate",
    "sample_of",
    "stream",
    "stream_text",
    "text_of",
]

Finish = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What one row was continued with."""

    ids: list[int]  # with the stop id, or the tokens of the stop string, that ended it
    logprobs: list[float]  # of each id, see `sampling.choose`
    finish: Finish
    stop_string: str | None = None  # the one that ended it


@dataclasses.dataclass(frozen=True)
class Step:
    """One new token for each row that is still going."""

    rows: list[int]  # places in the list of prompts
    ids: list[int]
    logprobs: list[float]
    finishes: list[Finish | None]  # None: the row goes on
    stop_strings: list[str | None]


def generate(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, token_bytes: Sequence[bytes] | None = None
) -> list[Completion]:
    """Continue each prompt; see `stream`."""
    ids: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    done: dict[int, tuple[Finish, str | None]] = {}
    for step in stream(model, prompts, sampling, token_bytes):
        for place, row in enumerate(step.rows):
            ids[row].append(step.ids[place])
            logprobs[row].append(step.logprobs[place])
            finish = step.finishes[place]
            if finish:
                done[row] = finish, step.stop_strings[place]
    return [Completion(ids[row], logprobs[row], *done[row]) for row in range(len(prompts))]


def stream(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, token_bytes: Sequence[bytes] | None = None
) -> Iterator[Step]:
    """Continue each prompt, a token for each at a time; rows that are done cost nothing more.

    Args:
        model: one of ours, or a causal language model of transformers; put into evaluation mode meanwhile.
        prompts: ids, at least one each; of different lengths.
        token_bytes: the bytes of each id (`TextTokenizer.token_bytes()`), needed for stop strings. Given, rows of
            the model's vocabulary beyond the tokenizer's, which models are padded with, are never chosen.
    Raises:
        DataError: a prompt is empty, or with the new tokens does not fit into the model's context.
        ModelError: the model gives NaN or infinity.
    """
    if not prompts:
        return
    _check_lengths(model, prompts, sampling)
    if sampling.stop_strings and token_bytes is None:
        raise ValueError("stop strings need token_bytes")
    was_training = model.training
    model.eval()
    try:
        yield from _steps(model, prompts, sampling, token_bytes)
    finally:
        model.train(was_training)


def _steps(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, token_bytes: Sequence[bytes] | None
) -> Iterator[Step]:
    room = max(map(len, prompts)) + sampling.max_new_tokens
    texts = decoder(model, prompts, room)
    rows = list(range(len(prompts)))
    watches = [_StopWatch(sampling, token_bytes) for _ in prompts]
    ids_B = torch.empty(0, dtype=torch.long)
    uniform_BN = is_seen_BV = None
    for number in range(sampling.max_new_tokens):
        with torch.inference_mode():
            logits_BV = _on_capable_device(texts.step(ids_B) if number else texts.start())
            if token_bytes is not None:
                logits_BV[:, len(token_bytes) :] = -torch.inf
            if uniform_BN is None:
                uniform_BN = row_randomness(prompts, sampling).to(logits_BV.device)
                is_seen_BV = _seen_in_prompts(prompts, logits_BV) if sampling.repetition_penalty != 1 else None
            chosen = choose(logits_BV, sampling, uniform_BN[:, number], is_seen_BV)
            if is_seen_BV is not None:
                is_seen_BV.scatter_(1, chosen.ids[:, None], True)
        ids = chosen.ids.tolist()
        stops = [watches[row].stop_of(token) for row, token in zip(rows, ids, strict=True)]
        is_last = number + 1 == sampling.max_new_tokens
        finishes: list[Finish | None] = ["stop" if s is not None else "length" if is_last else None for s in stops]
        logprobs = chosen.logprobs.tolist()
        refuse_nan(sum(logprobs))
        yield Step(rows, ids, logprobs, finishes, [stop or None for stop in stops])
        kept = _without_finished(finishes)
        if not kept:
            return
        ids_B = chosen.ids
        if len(kept) < len(rows):
            with torch.inference_mode():
                texts.keep(kept)
                ids_B, uniform_BN = ids_B[kept], uniform_BN[kept]
                is_seen_BV = None if is_seen_BV is None else is_seen_BV[kept]
            rows = [rows[place] for place in kept]


def _without_finished(finishes: list[Finish | None]) -> list[int]:
    """The places that go on; the last one moves into a gap, so that few rows move."""
    kept = list(range(len(finishes)))
    for place in reversed(range(len(finishes))):
        if finishes[place]:
            kept[place] = kept[-1]
            kept.pop()
    return kept


class _StopWatch:
    """Sees when one row has ended."""

    def __init__(self, sampling: Sampling, token_bytes: Sequence[bytes] | None) -> None:
        self._stop_ids = frozenset(sampling.stop_ids)
        self._stop_strings = [(string.encode(), string) for string in sampling.stop_strings]
        self._tail_length = max((len(string) for string, _ in self._stop_strings), default=1)
        self._token_bytes = token_bytes
        self._tail = b""

    def stop_of(self, token: int) -> str | None:
        """What this token ends the row with: a stop string, "" for a stop id; None if the row goes on."""
        if token in self._stop_ids:
            return ""
        if self._token_bytes is not None and self._stop_strings:
            self._tail += self._token_bytes[token]
            found = [(self._tail.find(encoded), string) for encoded, string in self._stop_strings]
            found = [(place, string) for place, string in found if place >= 0]
            if found:
                return min(found)[1]
            self._tail = self._tail[-self._tail_length :]
        return None


def complete(model: Any, tokenizer: TextTokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
    """The new text for each prompt of ids, up to and without the stop id or stop string."""
    completions = generate(model, prompts, sampling, tokenizer.token_bytes())
    return [text_of(tokenizer, completion) for completion in completions]


def text_of(tokenizer: TextTokenizer, completion: Completion) -> str:
    """A completion's text without what ended it; by bytes, as the tokenizer may drop the space that it begins with."""
    text = tokenizer.decode_bytes(completion.ids).decode("utf-8", "replace")
    return text if completion.stop_string is None else text.split(completion.stop_string, 1)[0]


def sample_of(tokenizer: TextTokenizer, completion: Completion) -> dict[str, Any]:
    """A completion for samples.jsonl: its `text`, and its `tokens` as [piece, probability].

    The pieces add up to the text; that of an id which only begins a character, or ends the text, is empty.
    """
    table = tokenizer.token_bytes()
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    pieces = [decode(table[number]) for number in completion.ids]
    pieces[-1] += decode(b"", final=True)
    probabilities = [round(math.exp(logprob), 4) for logprob in completion.logprobs]
    tokens = [list(pair) for pair in zip(pieces, probabilities, strict=True)]
    return {"text": "".join(pieces), "tokens": tokens}


def continue_texts(model: Any, tokenizer: TextTokenizer, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """What the model writes after each text, until the document ends.

    An empty prompt is the beginning of a document. Of a prompt too long for the context the end is read.
    Without stop ids of its own, `sampling` stops at the end-of-text token.
    """
    sampling = fitted(model, tokenizer, sampling)
    return complete(model, tokenizer, prompt_ids(model, tokenizer, prompts, sampling), sampling)


def prompt_ids(model: Any, tokenizer: TextTokenizer, prompts: Sequence[str], sampling: Sampling) -> list[list[int]]:
    """The ids to continue for each text: its end where it is too long, the document's beginning where it is empty."""
    longest = context_of(model) - sampling.max_new_tokens
    return [ids[-longest:] or [tokenizer.end_of_text_id] for ids in tokenizer.encode_batch(prompts)]


def fitted(model: Any, tokenizer: TextTokenizer, sampling: Sampling) -> Sampling:
    """Settings that stop at the document's end and leave room in the context for one prompt token at least."""
    return dataclasses.replace(
        sampling,
        stop_ids=sampling.stop_ids or (tokenizer.end_of_text_id,),
        max_new_tokens=min(sampling.max_new_tokens, context_of(model) - 1),
    )


def stream_text(model: Any, tokenizer: TextTokenizer, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """The text that follows a prompt of ids, in pieces, as soon as each is certain.

    Held back are the bytes of an unfinished character and what may be the beginning of a stop string.
    """
    table = tokenizer.token_bytes()
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    waiting = ""
    for step in stream(model, [prompt], sampling, table):
        waiting += decode(table[step.ids[0]], final=step.finishes[0] is not None)
        if step.stop_strings[0] is not None:
            waiting = waiting.split(step.stop_strings[0], 1)[0]
        held = 0 if step.finishes[0] else _possible_stop(waiting, sampling.stop_strings)
        certain, waiting = waiting[: len(waiting) - held], waiting[len(waiting) - held :]
        if certain:
            yield certain


def _possible_stop(text: str, stop_strings: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop string."""
    lengths = (n for string in stop_strings for n in range(1, len(string)) if text.endswith(string[:n]))
    return max(lengths, default=0)


def context_of(model: Any) -> int:
    """How many tokens a model can read; as good as endless where a transformers model does not say."""
    config = model.config
    for name in ("context", "max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(found := getattr(config, name, None), int):
            return found
    return 1 << 30


def _check_lengths(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"prompt {number} is empty; begin it with the end-of-text token")
    longest, context = max(map(len, prompts)), context_of(model)
    if longest + sampling.max_new_tokens > context:
        raise DataError(
            f"{longest} prompt tokens and {sampling.max_new_tokens} new ones do not fit into the model's context "
            f"of {context}; shorten the prompts or ask for fewer"
        )


def _seen_in_prompts(prompts: Sequence[Sequence[int]], logits_BV: Tensor) -> Tensor:
    is_seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        is_seen_BV[row, list(prompt)] = True
    return is_seen_BV


def _on_capable_device(logits_BV: Tensor) -> Tensor:
    """MPS has no float64, which the choice needs."""
    return logits_BV.cpu() if logits_BV.device.type == "mps" else logits_BV
