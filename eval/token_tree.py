"""Sequences that begin alike, as one tree of tokens: what they share is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """A sequence of ids, of which those from `start` on are scored."""

    ids: Sequence[int]
    start: int  # at least 1: the first token has no context
    is_cut: bool = False
    is_whole: bool = True  # nothing that is to be scored was left out

    @classmethod
    def fitted(cls, ids: Sequence[int], start: int, context: int) -> "Tokens":
        """A sequence without the beginning that a model's context has no room for; the last id is not read."""
        left_out = max(0, len(ids) - (context + 1))
        rest = start - left_out
        return cls(ids[left_out:], max(1, rest), left_out > 0, rest > 0)


# Attention within a tree costs as much for what a token may not see: small trees of all that begins alike, and larger
# ones only for choices behind a long question.
TREE_TOKENS, TREE_LENGTHS = 96, 4
TREE_AT_MOST = 4096  # tokens: memory grows with the square; rows without branches need no table of what they see
WORTH_SHARING = 2  # tokens; the beginning of a document is one that all share


def pack(sequences: Sequence[Tokens]) -> list[list[int]]:
    """Places of sequences that are worth reading as one tree; each place once."""
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i].ids))
    packs: list[list[int]] = []
    size = 0
    for before, i in zip([None, *order], order, strict=False):
        ids = sequences[i].ids
        shared = 0 if before is None else _shared(sequences[before].ids, ids)
        grown = size + len(ids) - shared
        if packs and shared >= WORTH_SHARING and grown <= min(max(TREE_TOKENS, TREE_LENGTHS * len(ids)), TREE_AT_MOST):
            packs[-1].append(i)
            size = grown
        else:
            packs.append([i])
            size = len(ids)
    return packs


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


@dataclass(frozen=True)
class TokenTree:
    """The tokens to read, each behind its parent, and the edges to score."""

    ids: list[int]
    parents: list[int]  # -1: the first token of a sequence
    depths: list[int]  # position in its sequence
    edges: list[tuple[int, int]]  # (token in the tree, id that follows it)
    paths: list[np.ndarray]  # of each sequence: the edges of its scored ids

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> "TokenTree":
        """The tree of some sequences."""
        nodes: dict[tuple[int, int], int] = {}
        edge_numbers: dict[tuple[int, int], int] = {}
        parents, depths, paths = [], [], []
        for tokens in sequences:
            node, path = -1, []
            for position, token in enumerate(tokens.ids):
                if position >= tokens.start:
                    path.append(edge_numbers.setdefault((node, token), len(edge_numbers)))
                if position == len(tokens.ids) - 1:
                    break
                key = (node, token)
                if key not in nodes:
                    nodes[key] = len(nodes)
                    parents.append(node)
                    depths.append(position)
                node = nodes[key]
            paths.append(np.array(path))
        return cls([token for _, token in nodes], parents, depths, list(edge_numbers), paths)

    @property
    def has_branches(self) -> bool:
        """Whether it is more than one row of tokens."""
        return self.parents != list(range(-1, len(self.parents) - 1))

    def visible(self) -> np.ndarray:
        """(T, T) bool: each token sees itself and what stands before it in its sequence."""
        size = len(self.ids)
        visible_TT = np.eye(size, dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                visible_TT[node] |= visible_TT[parent]
        return visible_TT
