"""The tokens and the template that a model needs to hold a conversation."""

import itertools
from collections.abc import Sequence
from typing import Any

import tokenizers
import torch

from fledge import console
from fledge.tokens import END_OF_TURN, PADDING, START_OF_TURN, TextTokenizer, default_chat_template
from tokenizer.chat import has_generation_blocks, render

_SMALLEST_CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def for_chat(tokenizer: TextTokenizer) -> TextTokenizer:
    """The tokenizer with a template that says what is learned, and with the tokens that it writes.

    A template of its own stays if it has generation blocks; else ours takes its place, and that is said.
    """
    template = tokenizer.chat_template
    if template is not None and has_generation_blocks(template):
        return tokenizer
    if template is not None:
        console.note(
            "the model's own chat template does not mark what the assistant says; fledge's (ChatML) takes its place"
        )
    inner = tokenizers.Tokenizer.from_str(tokenizer.inner.to_str())
    roles = {"pad_token": PADDING} | tokenizer.roles
    wanted = [START_OF_TURN, END_OF_TURN, *([PADDING] if roles["pad_token"] == PADDING else [])]
    added = [name for name in wanted if inner.token_to_id(name) is None]
    if added:
        inner.add_special_tokens(added)
        console.note(f"new special tokens: {', '.join(added)}")
    return TextTokenizer(inner, roles, default_chat_template())


def new_ids(old: TextTokenizer, new: TextTokenizer) -> list[int]:
    """The ids that only the new tokenizer has."""
    return sorted(set(new.special_ids.values()) - set(old.inner.get_vocab(with_added_tokens=True).values()))


def template_ids(tokenizer: TextTokenizer) -> list[int]:
    """The special ids that the chat template writes: turns begin and end with them."""
    special = set(tokenizer.special_ids.values())
    return sorted(special.intersection(render(tokenizer, _SMALLEST_CHAT).ids))


def make_room(model: Any, ids: Sequence[int], num_tokens: int) -> None:
    """Give a transformers model rows for new ids: the mean of all rows before, in the head, too."""
    if not ids:
        return
    used = min(ids)
    if num_tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weight in {layer.weight for layer in layers if layer is not None}:
            weight[list(ids)] = weight[:used].mean(0)
        bias = getattr(layers[1], "bias", None)
        if bias is not None:
            bias[list(ids)] = bias[:used].mean()


def stop_ids(tokenizer: TextTokenizer) -> tuple[int, ...]:
    """The ids that end an answer: the first special one that the template writes behind it, and the document's end."""
    ends = [tokenizer.end_of_text_id]
    if tokenizer.chat_template is not None:
        question, answer = _SMALLEST_CHAT
        chats = [render(tokenizer, [question, {**answer, "content": text}]).ids for text in ("b", "c")]
        special = set(tokenizer.special_ids.values())
        # From the end backwards, up to the answers, in which the two differ.
        behind = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*map(reversed, chats), strict=False))
        ends = [number for number, _ in behind if number in special][-1:] + ends
    return tuple(dict.fromkeys(ends))
