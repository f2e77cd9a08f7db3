"""Log-probabilities of tokens: what all tasks by log-likelihood and perplexity are computed with.

Nothing is computed twice and little for padding: sequences that begin alike (two sentences of a pair, the choices of a
question) are read as one tree, trees of about one size make a batch, and logits are made only for tokens that are
scored, a chunk at a time. Conventions are lm-evaluation-harness's (its `HFLM.loglikelihood`).

Shapes: B trees, T tokens of the largest, D width, E edges (a token after its context), V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.items import Answer, Item, Likelihood
from eval.token_tree import Tokens, TokenTree, pack
from fledge import console, device
from fledge.errors import DataError, ModelError, is_out_of_memory
from fledge.models.architecture import refuse_nan
from fledge.models.generation import context_of
from fledge.models.loss import CHUNK, CHUNK_ELSEWHERE
from fledge.tokens import TextTokenizer
from tokenizer import chat

# Tokens of a batch: on a CPU about what stays in its caches; on a GPU what fills it.
BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_ELSEWHERE = 65536
# Logits of a transformers model held at once (elements): 256 MB in float32.
FULL_LOGITS = 1 << 26
# bfloat16: items to learn its error from, and how many times that error a verdict must be clear of.
NUM_CALIBRATED, CLEAR_OF = 64, 6.0


@dataclass(frozen=True)
class TokenScores:
    """The scored tokens of one sequence."""

    logprobs: np.ndarray  # float64 (n,), nats
    is_greedy: np.ndarray  # bool (n,), the likeliest token there


class Scorer:
    """Scores with one model.

    Args:
        dtype: float32 or bfloat16.
        batch_size: sequences at once; 0: as many as fill the processor.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer, dtype: str = "float32", batch_size: int = 0) -> None:
        self.context = context_of(model)
        self.dtype_name = dtype
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._device = next(model.parameters()).device
        self._budget = BATCH_TOKENS.get(self._device.type, BATCH_TOKENS_ELSEWHERE)
        self._is_ours = hasattr(model, "run_blocks")
        self._low_precision: Any = None

    # --- texts ---

    def answer_items(
        self, items: Sequence[Item], margin: Callable[[Item, Sequence[Answer]], float] | None = None
    ) -> tuple[list[list[Answer]], dict[str, Any]]:
        """The likelihoods that items ask for, and how they were had.

        Args:
            margin: by how many nats an item's verdict is clear; needed for scoring in bfloat16.
        Raises:
            DataError: a continuation has no tokens.
            ModelError: a likelihood is not finite.
        """
        groups = self.encode(items)
        if self.dtype_name == "float32" or margin is None:
            answers = self._likelihoods(groups)
            settings: dict[str, Any] = {"dtype": "float32"}
        else:
            answers, settings = self._in_low_precision(items, groups, margin)
        num_cut = sum(answer.is_cut for given in answers for answer in given)
        if num_cut:
            console.warn(
                f"{num_cut} of {sum(map(len, answers))} texts did not fit into the context of {self.context} "
                "tokens; their beginning was left out"
            )
        return answers, settings | {"num_cut": num_cut}

    def encode(self, items: Sequence[Item]) -> list[list[Tokens]]:
        """The tokens of each request; context and continuation are encoded together and then parted."""
        requests: list[Any] = [request for item in items for request in item.requests]
        parted = [_part(request) for request in requests]
        texts = list({context for context, _ in parted if context})
        lengths = {text: len(ids) for text, ids in zip(texts, self._tokenizer.encode_batch(texts), strict=True)}
        wholes = self._tokenizer.encode_batch([context + continuation for context, continuation in parted])
        encoded = zip(requests, parted, wholes, strict=True)
        groups = []
        for item in items:
            group = []
            for _ in item.requests:
                request, (context, continuation), whole = next(encoded)
                num_before = lengths.get(context, 0)
                if len(whole) <= num_before:
                    raise DataError(
                        f"{item.row.where}: {continuation!r} has no tokens after its context; "
                        "a choice or continuation must say something"
                    )
                before = self._before(request.context) if num_before == 0 else []
                group.append(Tokens.fitted([*before, *whole], len(before) + num_before, self.context))
            groups.append(group)
        return groups

    def _before(self, context: Any) -> list[int]:
        """What stands before a continuation that is encoded by itself: a document's beginning, or messages."""
        if isinstance(context, str):
            return [self._tokenizer.end_of_text_id]
        return chat.render(self._tokenizer, context, add_generation_prompt=True).ids

    def _likelihoods(self, groups: Sequence[Sequence[Tokens]], low: bool = False) -> list[list[Answer]]:
        scores = iter(self.score([tokens for group in groups for tokens in group], low))
        return [[_likelihood(tokens, next(scores)) for tokens in group] for group in groups]

    def _in_low_precision(
        self,
        items: Sequence[Item],
        groups: Sequence[Sequence[Tokens]],
        margin: Callable[[Item, Sequence[Answer]], float],
    ) -> tuple[list[list[Answer]], dict[str, Any]]:
        """In bfloat16; a verdict within a few times bfloat16's own error is scored again in float32."""
        answers = self._likelihoods(groups, low=True)
        lead = [margin(item, given) for item, given in zip(items, answers, strict=True)]
        sample = sorted({i * len(items) // NUM_CALIBRATED for i in range(NUM_CALIBRATED)} if items else set())

        def again(places: Sequence[int]) -> None:
            for i, given in zip(places, self._likelihoods([groups[i] for i in places]), strict=True):
                answers[i] = given

        again(sample)
        errors = [margin(items[i], answers[i]) - lead[i] for i in sample]
        limit = CLEAR_OF * float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
        close = sorted({i for i, value in enumerate(lead) if abs(value) < limit} - set(sample))
        again(close)
        facts = {"dtype": "bfloat16", "again_in_float32": len(close) + len(sample), "clear_margin_nats": limit}
        return answers, facts

    # --- tokens ---

    def score(self, sequences: Sequence[Tokens], low: bool = False) -> list[TokenScores]:
        """The scores of sequences; what neighbours in order of their ids share is read once.

        Args:
            low: in bfloat16, in place of float32.
        """
        # transformers' own classes read plain rows only.
        packs = pack(sequences) if self._is_ours else [[i] for i in range(len(sequences))]
        trees = [TokenTree.of([sequences[i] for i in places]) for places in packs]
        found = [TokenScores(np.empty(0), np.empty(0))] * len(sequences)
        for places, scores in zip(packs, self._score_trees(trees, low), strict=True):
            for i, score in zip(places, scores, strict=True):
                found[i] = score
        return found

    def _score_trees(self, trees: Sequence[TokenTree], low: bool) -> list[list[TokenScores]]:
        found: dict[int, list[TokenScores]] = {}
        # The largest first: what does not fit into memory shows at once.
        waiting = sorted(range(len(trees)), key=lambda i: -len(trees[i].ids))
        with console.progress("scoring", sum(len(tree.ids) for tree in trees), "tokens") as bar:
            while waiting:
                batch = waiting[: self._rows_of(len(trees[waiting[0]].ids))]
                try:
                    scores = self._score_batch([trees[i] for i in batch], low)
                except RuntimeError as error:
                    self._batch_size = halved(len(batch), error)
                    continue
                found.update(zip(batch, scores, strict=True))
                waiting = waiting[len(batch) :]
                bar.advance(sum(len(trees[i].ids) for i in batch))
        return [found[i] for i in range(len(trees))]

    def _rows_of(self, longest: int) -> int:
        rows = self._batch_size or max(1, self._budget // longest)
        if not self._is_ours:
            rows = min(rows, max(1, FULL_LOGITS // (longest * self._model.config.get_text_config().vocab_size)))
        return rows

    @torch.inference_mode()
    def _score_batch(self, trees: Sequence[TokenTree], low: bool) -> list[list[TokenScores]]:
        model = self._bfloat16_model() if low else self._model
        ids_BT, positions_BT, visible = _batch(trees, self._device)
        row_E = np.repeat(np.arange(len(trees)), [len(tree.edges) for tree in trees])
        node_E, target_E = np.array([edge for tree in trees for edge in tree.edges]).T
        places = torch.as_tensor(row_E, device=self._device), torch.as_tensor(node_E, device=self._device)
        targets = torch.as_tensor(target_E, device=self._device)
        if self._is_ours:
            kept = model.run_blocks(ids_BT, positions_BT, visible, None)[places]
            to_logits = model.logits
        else:
            kept = model(input_ids=ids_BT, use_cache=False).logits[places]
            to_logits = Tensor.float
        chunk = CHUNK.get(self._device.type, CHUNK_ELSEWHERE)
        parts = [_chosen(to_logits(some), t) for some, t in zip(kept.split(chunk), targets.split(chunk), strict=True)]
        logprob_E = torch.cat([logprobs for logprobs, _ in parts]).cpu().double().numpy()  # Apple GPUs have no float64
        refuse_nan(logprob_E.sum())
        is_greedy_E = torch.cat([is_greedy for _, is_greedy in parts]).cpu().numpy()
        scores, start = [], 0
        for tree in trees:
            scores.append([TokenScores(logprob_E[start + path], is_greedy_E[start + path]) for path in tree.paths])
            start += len(tree.edges)
        return scores

    def _bfloat16_model(self) -> Any:
        if self._low_precision is None:
            self._low_precision = copy.deepcopy(self._model).to(device.torch_dtype("bfloat16"))
        return self._low_precision


def halved(num_texts: int, error: RuntimeError) -> int:
    """How many texts to go on with where a batch did not fit into memory, said aloud.

    Raises:
        ModelError: not even one fits; the error itself, where it is about something else.
    """
    if not is_out_of_memory(error):
        raise error
    if num_texts == 1:
        raise ModelError("not enough memory for one text; use a machine with more, or --device cpu") from None
    console.warn(f"not enough memory for {num_texts} texts at once; going on with {num_texts // 2}")
    return num_texts // 2


def _likelihood(tokens: Tokens, score: TokenScores) -> Likelihood:
    nats, is_greedy = float(score.logprobs.sum()), bool(score.is_greedy.all())
    return Likelihood(nats, len(score.logprobs), is_greedy, tokens.is_cut, tokens.is_whole)


def _part(request: Any) -> tuple[str, str]:
    """Context and continuation as they are encoded: spaces at the context's end go to the continuation."""
    if not isinstance(request.context, str):
        return "", request.continuation
    context = request.context.rstrip()
    return context, request.context[len(context) :] + request.continuation


def _chosen(logits_EV: Tensor, target_E: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether it is the likeliest; the logits are overwritten."""
    target_logit_E = logits_EV.gather(1, target_E[:, None])[:, 0]
    largest_E, likeliest_E = logits_EV.max(1)
    log_sum_E = logits_EV.sub_(largest_E[:, None]).exp_().sum(1).log_() + largest_E
    return target_logit_E - log_sum_E, likeliest_E == target_E


def _batch(trees: Sequence[TokenTree], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids and positions (B, T), padded to the right, and which tokens each sees; None: all before it."""
    longest = max(len(tree.ids) for tree in trees)
    ids_BT = np.zeros((len(trees), longest), dtype=np.int64)
    positions_BT = np.zeros_like(ids_BT)
    for row, tree in enumerate(trees):
        ids_BT[row, : len(tree.ids)] = tree.ids
        positions_BT[row, : len(tree.ids)] = tree.depths
    visible = None
    if any(tree.has_branches for tree in trees):
        visible_BTT = np.broadcast_to(np.eye(longest, dtype=bool), (len(trees), longest, longest)).copy()
        for row, tree in enumerate(trees):
            size = len(tree.ids)
            visible_BTT[row, :size, :size] = tree.visible()
        visible = torch.as_tensor(visible_BTT[:, None], device=device)
    ids, positions = (torch.as_tensor(x, device=device) for x in (ids_BT, positions_BT))
    return ids, positions, visible
