"""Learning a vocabulary from text, for the four kinds of tokenizer; all of them are lossless on any text.

Each kind works on the bytes of text: what its vocabulary does not cover falls back to single bytes, all of which
are tokens. So there is no unknown token, and decoding gives back every byte.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from fledge.errors import DataError
from fledge.tokens import SPECIAL_TOKENS, byte_alphabet

Kind = Literal["bpe", "word", "char", "unigram"]
BASE_SIZE = 256 + len(SPECIAL_TOKENS)

# In the manner of GPT-4's: contractions; a word with the one sign or space before it; digits; signs with the
# space before and the line ends behind; white space. No more than two digits to a token: with small
# vocabularies that costs fewer bits per byte than three (nanochat's log: 0.965 against 0.972 at 32k).
PRE_SPLIT = (
    r"'(?:[sdmtSDMT]|ll|ve|re|LL|VE|RE)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
_ONE_CHARACTER = r"[\s\S]"
# A pair or word seen once is no regularity; leaving it out keeps noise out of the vocabulary.
_MIN_FREQUENCY = 2


def learn(kind: Kind, texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn a tokenizer of one kind.

    Args:
        vocab_size: with the 256 bytes and the special tokens; for `char` the most it may become.
    Raises:
        DataError: the texts don't allow a vocabulary of that size.
    """
    if vocab_size < BASE_SIZE:
        raise DataError(f"--vocab-size {vocab_size}: needs at least {BASE_SIZE} (256 bytes and the special tokens)")
    tokenizer = _LEARNERS[kind](texts, vocab_size)
    size = tokenizer.get_vocab_size()
    if size < vocab_size and kind != "char":
        raise DataError(
            f"--vocab-size {vocab_size}: the text allows only {size}; give at most --vocab-size {size}, or more text"
        )
    return tokenizer


def _learn_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, Radford et al. 2019)."""
    return _trained(models.BPE(), trainers.BpeTrainer, texts, vocab_size, min_frequency=_MIN_FREQUENCY)


def _learn_unigram(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """The likeliest segmentation under a unigram model of pieces (Kudo 2018), over bytes."""
    return _trained(models.Unigram(), trainers.UnigramTrainer, texts, vocab_size)


def _trained(
    model: models.Model, trainer: Callable[..., Any], texts: Iterator[str], vocab_size: int, **settings: Any
) -> Tokenizer:
    """A tokenizer from one of the library's trainers, over bytes."""
    tokenizer = _pipeline(model, PRE_SPLIT)
    settings |= {"special_tokens": list(SPECIAL_TOKENS), "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer.train_from_iterator(texts, trainer(vocab_size=vocab_size, show_progress=False, **settings))
    return tokenizer


def _learn_words(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """The most frequent pre-split pieces as whole tokens, all else as bytes."""
    import regex

    find_pieces = regex.compile(PRE_SPLIT).findall
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(find_pieces(text))
    return _most_frequent(counts, _MIN_FREQUENCY, vocab_size, PRE_SPLIT)


def _learn_characters(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """The most frequent characters as tokens, all else as bytes."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return _most_frequent(counts, 1, vocab_size, _ONE_CHARACTER)


def _most_frequent(counts: Counter[str], least: int, vocab_size: int, pattern: str) -> Tokenizer:
    # A BPE without merges takes a piece whole if it is in the vocabulary, and else byte by byte.
    alphabet = byte_alphabet()
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *sorted(alphabet.values())))
    for piece, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(tokens) == vocab_size or count < least:
            break
        tokens.setdefault("".join(alphabet[byte] for byte in piece.encode()))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = _pipeline(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True), pattern)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _pipeline(model: models.Model, pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


_LEARNERS: dict[Kind, Callable[[Iterator[str], int], Tokenizer]] = {
    "bpe": _learn_bpe,
    "word": _learn_words,
    "char": _learn_characters,
    "unigram": _learn_unigram,
}
