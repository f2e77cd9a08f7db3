"""The readable BPE and the library agree on merges and on ids."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.tokens import SPECIAL_TOKENS, TextTokenizer, byte_alphabet
from tokenizer import bpe
from tokenizer.learn import learn

CHARACTERS = {character: byte for byte, character in byte_alphabet().items()}


def library_merges(tokenizer: TextTokenizer) -> list[bpe.Pair]:
    merges = json.loads(tokenizer.inner.to_str())["model"]["merges"]
    as_bytes = [[bytes(CHARACTERS[c] for c in token) for token in pair] for pair in merges]
    return [(left, right) for left, right in as_bytes]


def test_merges_equal_the_librarys(corpus: list[str]) -> None:
    size = 256 + len(SPECIAL_TOKENS) + 200
    library = TextTokenizer(learn("bpe", iter(corpus), size))
    assert bpe.learn_merges(corpus, 200) == library_merges(library)


@given(st.lists(st.text(alphabet="ab \n\u4f60", max_size=30), min_size=1, max_size=5))
def test_merges_equal_the_librarys_on_any_text(texts: list[str]) -> None:
    merges = bpe.learn_merges(texts, 20)
    size = 256 + len(SPECIAL_TOKENS) + len({left + right for left, right in merges})
    assert library_merges(TextTokenizer(learn("bpe", iter(texts), size)))[: len(merges)] == merges


def test_encoding_equals_the_librarys(corpus: list[str], small_tokenizer: TextTokenizer) -> None:
    merges = library_merges(small_tokenizer)
    table = small_tokenizer.token_bytes()
    for text in (*corpus[:5], "naive na\u00efve \u4f60\u597d 31337 <|im_end|>\t\t\n\n x"):
        assert bpe.encode(text, merges) == [table[number] for number in small_tokenizer.encode(text)]


def test_first_merges_by_hand() -> None:
    # Words "abab" and "ab": the pair (a, b) stands three times, then (ab, ab) once.
    assert bpe.learn_merges(["abab", "ab"], 5) == [(b"a", b"b")]
    assert bpe.learn_merges(["abab", "ab"], 5, min_frequency=1) == [(b"a", b"b"), (b"ab", b"ab")]


def test_merging_goes_from_left_to_right() -> None:
    assert bpe.merge([b"a", b"a", b"a"], (b"a", b"a")) == [b"aa", b"a"]


@pytest.mark.parametrize("text", ["", " ", "don't STOP 12345 \r\n\r\n caf\u00e9--\n\tend  "])
def test_pieces_join_to_the_text(text: str) -> None:
    assert b"".join(bpe.split_words(text)) == text.encode()


def test_no_token_is_longer_than_its_piece(corpus: list[str]) -> None:
    tokens = bpe.encode(corpus[0], bpe.learn_merges(corpus[:3], 50))
    assert b"".join(tokens) == corpus[0].encode()
    assert all(left + right for left, right in pairwise(tokens))
