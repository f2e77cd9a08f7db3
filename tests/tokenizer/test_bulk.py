"""Bulk encoding gives the tokenizer's own ids, or is not used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from fledge.errors import ModelError
from fledge.tokens import SPECIAL_TOKENS, TextTokenizer
from tokenizer.bulk import LibraryEncoder, TiktokenEncoder, bulk_encoder
from tokenizer.learn import learn


def test_tiktoken_gives_equal_ids_on_any_text(small_tokenizer: TextTokenizer) -> None:
    fast = TiktokenEncoder(small_tokenizer)

    @settings(max_examples=200)
    @given(st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("the a'SsLl\n \t12\u017f"))))
    def check(text: str) -> None:
        assert fast.encode([text])[0].tolist() == small_tokenizer.encode(text)

    check()


def test_tiktoken_splits_every_character_alike(small_tokenizer: TextTokenizer) -> None:
    # All of the basic plane, between letters, signs and spaces: \p{L}, \p{N} and \s mean the same to both.
    characters = [chr(code) for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{c}b {c}.{c}\n" for c in characters[start : start + 2000]) for start in range(0, 63000, 2000)]
    fast, slow = TiktokenEncoder(small_tokenizer).encode(texts), small_tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in fast] == slow


def test_a_million_spaces_are_encoded(small_tokenizer: TextTokenizer) -> None:
    text = f"a{' ' * 1_000_000}b"
    assert TiktokenEncoder(small_tokenizer).encode([text])[0].tolist() == small_tokenizer.encode(text)


def test_special_tokens_in_text_are_plain_text(small_tokenizer: TextTokenizer) -> None:
    text = "".join(SPECIAL_TOKENS) * 3
    (ids,) = TiktokenEncoder(small_tokenizer).encode([text])
    assert ids.tolist() == small_tokenizer.encode(text)
    assert not set(ids.tolist()) & set(small_tokenizer.special_ids.values())


def test_auto_takes_tiktoken_for_our_own(small_tokenizer: TextTokenizer, corpus: list[str]) -> None:
    encoder, why = bulk_encoder(small_tokenizer, "auto", corpus[:5])
    assert encoder.name == "tiktoken"
    assert "same ids" in why


@pytest.mark.parametrize("kind", ["word", "char", "unigram"])
def test_auto_takes_the_library_for_other_kinds(kind: str, corpus: list[str]) -> None:
    tokenizer = TextTokenizer(learn(kind, iter(corpus), 320))  # type: ignore[arg-type]
    encoder, _ = bulk_encoder(tokenizer, "auto", corpus[:5])
    assert encoder.name == "tokenizers"
    assert np.array_equal(encoder.encode(corpus[:1])[0], tokenizer.encode(corpus[0]))


def test_other_ids_on_the_sample_are_noticed(
    small_tokenizer: TextTokenizer, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: TiktokenEncoder, texts: list[str]) -> list[np.ndarray]:
        return [np.zeros(3, dtype=np.uint32) for _ in texts]

    monkeypatch.setattr(TiktokenEncoder, "encode", wrong)
    encoder, why = bulk_encoder(small_tokenizer, "auto", corpus[:1])
    assert isinstance(encoder, LibraryEncoder)
    assert why == "tiktoken gives other ids on a sample of the input"


def test_normalisers_and_added_tokens_are_refused(corpus: list[str]) -> None:
    for change in ("normalizer", "added"):
        inner = learn("bpe", iter(corpus), 300)
        if change == "normalizer":
            inner.normalizer = normalizers.NFC()
        else:
            inner.add_tokens([AddedToken("zzz", special=False)])
        with pytest.raises(ModelError, match="tiktoken neither normalises text nor has added tokens"):
            TiktokenEncoder(TextTokenizer(inner))
