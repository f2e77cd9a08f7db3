"""From texts to ids and back: where a text is cut, where it ends, and in which pieces it appears."""

import math
from typing import Any

import pytest
import tokenizers
import torch

from fledge.models import generation
from fledge.models.architecture import build, find_config
from fledge.models.generation import Completion, Sampling, continue_texts, generate, stream_text
from fledge.tokens import TextTokenizer


class Recital(torch.nn.Module):
    """A fake model of ours that says the same bytes whatever it is asked, one a token."""

    def __init__(self, said: bytes, prompt_length: int) -> None:
        super().__init__()
        self.config = find_config("gpt2").sized(vocab_size=257, context=64, layers=1, width=2, heads=1)
        self.head_weight = torch.nn.Parameter(torch.zeros(1, 1))
        self.said, self.prompt_length = said, prompt_length

    def hidden(self, ids_BT: torch.Tensor, cache: Any, is_padding_BT: Any) -> torch.Tensor:
        cache.extend(ids_BT.shape[1], is_padding_BT)
        position = cache.length - self.prompt_length
        return torch.full((*ids_BT.shape, 1), position)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        said = torch.tensor([self.said[position] for position in hidden[:, 0].tolist()])
        return torch.nn.functional.one_hot(said, 257) * 50.0


@pytest.mark.parametrize(
    ("said", "stops", "text"),
    [
        (b"one. two.\nUser: three", ("\nUser:",), "one. two."),
        (b"aab aabaac", ("aac", "aabaac"), "aab "),
        (b"aaab", ("ab",), "aa"),
        ("gr\u00fc\u00df Gott".encode(), ("\u00df",), "gr\u00fc"),
        (b"never", ("x",), "never"),
        (b"stop", ("stop",), ""),
    ],
)
def test_text_ends_before_a_stop_string(
    said: bytes, stops: tuple[str, ...], text: str, tokenizer: TextTokenizer
) -> None:
    prompt = [65, 66, 67]
    sampling = Sampling(max_new_tokens=len(said), temperature=0, stop_strings=stops)
    model = Recital(said, prompt_length=3)
    assert generation.complete(model, tokenizer, [prompt, prompt], sampling) == [text, text]
    pieces = list(stream_text(model, tokenizer, prompt, sampling))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    if text == "never":
        assert pieces == list("never")  # each letter as soon as it is there


def test_the_space_that_an_answer_begins_with_stays() -> None:
    pieces = {"\u2581": 0, "b": 1, "\u2581b": 2}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=pieces, merges=[("\u2581", "b")]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    assert generation.text_of(TextTokenizer(inner), Completion([2, 2], [0.0, 0.0], "length")) == " b b"


def test_a_sample_tells_how_sure_the_model_was_of_each_piece(tokenizer: TextTokenizer) -> None:
    ids = [*"gr\u00fc\u00df".encode(), 0xE2, tokenizer.end_of_text_id]
    written = Completion(ids, [math.log(share) for share in (1, 0.5, 0.25, 0.125, 1, 1, 0.5, 1)], "stop")
    sample = generation.sample_of(tokenizer, written)
    assert sample["text"] == tokenizer.decode(ids) == "gr\u00fc\u00df\ufffd"
    pieces = ["g", "r", "", "\u00fc", "", "\u00df", "", "\ufffd"]
    shares = [1, 0.5, 0.25, 0.125, 1, 1, 0.5, 1]
    assert sample["tokens"] == [[piece, share] for piece, share in zip(pieces, shares, strict=True)]


def test_texts_are_trimmed_to_the_context_and_may_be_empty(tokenizer: TextTokenizer) -> None:
    config = find_config("gpt2").sized(vocab_size=257, context=32, layers=1, width=16, heads=2)
    model = build(config, seed=1)
    sampling = Sampling(max_new_tokens=12, temperature=0, stop_ids=(-1,))
    long = "".join(chr(97 + n % 26) for n in range(100))
    assert continue_texts(model, tokenizer, [long[:20]], sampling) != continue_texts(
        model, tokenizer, [long[-20:]], sampling
    )
    assert continue_texts(model, tokenizer, [long], sampling) == continue_texts(
        model, tokenizer, [long[-20:]], sampling
    )
    started = generate(model, [[tokenizer.end_of_text_id]], sampling)[0]
    assert continue_texts(model, tokenizer, [""], sampling) == [tokenizer.decode(started.ids)]
    everything = continue_texts(model, tokenizer, ["a"], Sampling(max_new_tokens=99, stop_ids=(-1,)))
    assert len(everything) == 1


def test_a_document_ends_the_text_unless_other_stops_are_named(tokenizer: TextTokenizer) -> None:
    config = find_config("gpt2").sized(vocab_size=257, context=32, layers=1, width=16, heads=2)
    model = build(config, seed=1)
    end = tokenizer.end_of_text_id
    assert generation.fitted(model, tokenizer, Sampling()).stop_ids == (end,)
    assert generation.fitted(model, tokenizer, Sampling(stop_ids=(7,))).stop_ids == (7,)


def test_half_a_character_at_the_end_is_shown(tokenizer: TextTokenizer) -> None:
    model, sampling = Recital(b"ab\xe4", prompt_length=3), Sampling(max_new_tokens=3, temperature=0)
    assert "".join(stream_text(model, tokenizer, [65, 66, 67], sampling)) == "ab\ufffd"
