"""Byte-level byte-pair encoding, plainly: how the merges of a tokenizer come about, and how they are applied.

The product uses the `tokenizers` library; this is the same algorithm to be read (and the library's oracle: the
merges learned from a text are equal). Source: Sennrich et al. 2016 (arXiv 1508.07909), algorithm 1, over bytes
as in Radford et al. 2019.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

from fledge.tokens import byte_alphabet
from tokenizer.learn import PRE_SPLIT

Pair = tuple[bytes, bytes]


def split_words(text: str) -> list[bytes]:
    """The pieces that merges never reach across, as UTF-8."""
    return [piece.encode() for piece in regex.findall(PRE_SPLIT, text)]


def learn_merges(texts: Iterable[str], num_merges: int, min_frequency: int = 2) -> list[Pair]:
    """Merge the most frequent neighbours, again and again.

    Of equally frequent pairs the one with the older tokens comes first: by the left token's number, then by the
    right one's. Single bytes are numbered in the order of their printable stand-ins.
    Returns:
        at most `num_merges` pairs, in the order learned; fewer when no pair stands `min_frequency` times.
    """
    counts = Counter(word for text in texts for word in split_words(text))
    words = [[bytes([byte]) for byte in word] for word in counts]
    weights = list(counts.values())
    numbers = _byte_numbers()

    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += weights[place]
            words_with[pair].add(place)

    merges: list[Pair] = []
    while len(merges) < num_merges and pair_counts:
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], -numbers[pair[0]], -numbers[pair[1]]))
        if pair_counts[best] < min_frequency:
            break
        merges.append(best)
        numbers.setdefault(best[0] + best[1], len(numbers))
        for place in words_with.pop(best):
            before, after = words[place], merge(words[place], best)
            words[place] = after
            for pair in pairwise(before):
                pair_counts[pair] -= weights[place]
            for pair in pairwise(after):
                pair_counts[pair] += weights[place]
                words_with[pair].add(place)
        pair_counts = Counter({pair: count for pair, count in pair_counts.items() if count > 0})
    return merges


def encode(text: str, merges: list[Pair]) -> list[bytes]:
    """The tokens of a text: in each piece, the earliest learned merge that applies is done first."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokens: list[bytes] = []
    for piece in split_words(text):
        word = [bytes([byte]) for byte in piece]
        while known := [pair for pair in pairwise(word) if pair in ranks]:
            word = merge(word, min(known, key=ranks.__getitem__))
        tokens += word
    return tokens


def merge(word: list[bytes], pair: Pair) -> list[bytes]:
    """The word with every occurrence of the pair joined, from left to right."""
    merged: list[bytes] = []
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            merged.append(pair[0] + pair[1])
            place += 2
        else:
            merged.append(word[place])
            place += 1
    return merged


def _byte_numbers() -> dict[bytes, int]:
    in_order = sorted(byte_alphabet().items(), key=lambda item: item[1])
    return {bytes([byte]): number for number, (byte, _) in enumerate(in_order)}
