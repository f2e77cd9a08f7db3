"""All kinds of tokenizer: lossless, as large as asked, with the special tokens first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import DataError
from fledge.tokens import SPECIAL_TOKENS, TextTokenizer
from tokenizer.learn import Kind, learn

KINDS: list[Kind] = ["bpe", "word", "char", "unigram"]


@pytest.fixture(scope="session")
def learned(corpus: list[str]) -> dict[Kind, TextTokenizer]:
    return {kind: TextTokenizer(learn(kind, iter(corpus), 320)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_lossless(learned: dict[Kind, TextTokenizer], kind: Kind) -> None:
    @settings(max_examples=50)
    @given(st.text())
    def check(text: str) -> None:
        tokenizer = learned[kind]
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sum(len(tokenizer.token_bytes()[i]) for i in ids) == len(text.encode())

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first(learned: dict[Kind, TextTokenizer], kind: Kind) -> None:
    assert list(learned[kind].special_ids) == list(SPECIAL_TOKENS)
    assert list(learned[kind].special_ids.values()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["bpe", "word", "unigram"])
def test_the_vocabulary_is_as_large_as_asked(learned: dict[Kind, TextTokenizer], kind: Kind) -> None:
    assert learned[kind].vocab_size == 320


def test_words_are_whole_tokens(learned: dict[Kind, TextTokenizer]) -> None:
    tokenizer = learned["word"]
    assert [tokenizer.token_bytes()[i] for i in tokenizer.encode(" which would zz")] == [
        b" which",
        b" would",
        b" ",
        b"z",
        b"z",
    ]


def test_characters_are_whole_tokens(learned: dict[Kind, TextTokenizer]) -> None:
    tokenizer = learned["char"]
    pieces = [tokenizer.token_bytes()[i] for i in tokenizer.encode("a\u4f60\u00e9\u597d")]
    assert pieces == [b"a", "\u4f60".encode(), "\u00e9".encode(), *(bytes([b]) for b in "\u597d".encode())]


def test_261_is_bytes_and_special_tokens(corpus: list[str]) -> None:
    tokenizer = TextTokenizer(learn("bpe", iter(corpus), 261))
    assert tokenizer.vocab_size == 261
    assert len(tokenizer.encode("caf\u00e9")) == 5


def test_the_same_text_gives_the_same_tokenizer(corpus: list[str]) -> None:
    first, second = (TextTokenizer(learn("bpe", iter(corpus), 400)) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_a_vocabulary_below_the_bytes_is_refused(corpus: list[str]) -> None:
    with pytest.raises(DataError, match="--vocab-size 260: needs at least 261"):
        learn("bpe", iter(corpus), 260)


def test_a_vocabulary_beyond_the_text_says_what_it_allows() -> None:
    with pytest.raises(DataError, match=r"--vocab-size 5000: the text allows only (\d+); give at most"):
        learn("bpe", iter(["a little text, a little text"]), 5000)
