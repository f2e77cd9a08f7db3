"""A language model as a policy: the log-probabilities of its answers, with or without gradient.

Shapes: B answers, T tokens of prompt and answer, N tokens of an answer, D width, V vocabulary, M tokens of all
answers in a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fledge.errors import ModelError
from fledge.models.classifier import by_length, pad
from fledge.models.loss import linear_logprobs

SCORED_TOKENS = 4096  # in a forward pass without gradients, padding included
LOGIT_TOLERANCE = 1e-3

Ids = Sequence[int]


@dataclass(frozen=True)
class Answers:
    """Prompts with an answer to each, as rows for a forward pass."""

    prompts: Sequence[Ids]  # at least one token each
    answers: Sequence[Ids]  # at least one token each

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def lengths(self) -> list[int]:
        """Of the answers, in tokens."""
        return [len(answer) for answer in self.answers]

    @cached_property
    def ids(self) -> list[list[int]]:
        """Prompt and answer of each row."""
        return [[*prompt, *answer] for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    def rows(self, chosen: Sequence[int]) -> "Answers":
        """Some of them."""
        return Answers([self.prompts[row] for row in chosen], [self.answers[row] for row in chosen])

    def in_batches(self, ask: Callable[["Answers"], Tensor], budget: int = SCORED_TOKENS) -> list[Tensor]:
        """What `ask` says of each answer's tokens, (N,) on the CPU; asked in batches of like length.

        Args:
            ask: Answers -> (M,).
            budget: tokens in a batch, padding included.
        """
        found: list[Any] = [None] * len(self)
        for rows in by_length([len(row) for row in self.ids], budget):
            some = self.rows(rows)
            for row, part in zip(rows, ask(some).cpu().split(some.lengths), strict=True):
                found[row] = part
        return found

    def predicting(self, device: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The rows padded to the right, (B, T), and for each answer token in a row the place that predicts it.

        Returns:
            ids_BT without each row's last token, which predicts nothing; row_M and place_M: where in (B, T) the model
            stands before it says a token of an answer.
        """
        ids_BT, _ = pad([row[:-1] for row in self.ids], 0)
        rows: list[int] = []
        places: list[int] = []
        for row, (prompt, answer) in enumerate(zip(self.prompts, self.answers, strict=True)):
            rows += [row] * len(answer)
            places += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
        return ids_BT.to(device), torch.tensor(rows, device=device), torch.tensor(places, device=device)

    def tokens(self, device: Any) -> Tensor:
        """The ids of all answers in a row, (M,)."""
        return torch.tensor([token for answer in self.answers for token in answer], device=device)


class Policy:
    """A causal language model, ours or transformers', and the temperature that its answers are drawn at."""

    def __init__(self, model: Any, temperature: float = 1.0, wear: Callable[[], None] = lambda: None) -> None:
        """Take a model as it is; it stays in evaluation mode, so that dropout changes no probability.

        Args:
            wear: called before the model is asked: puts on its adapter where several parties share the model.
        Raises:
            ModelError: transformers' model makes its logits in a way of its own.
        """
        self.model, self.temperature, self.wear = model.eval(), temperature, wear
        self._trunk = trunk(model)
        if not hasattr(model, "hidden"):
            self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def logprobs(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer token, and the entropy of the distribution that it was drawn from.

        Returns:
            float32 (M,) twice, nats; with a gradient where gradients are on.
        """
        self.wear()
        ids_BT, row_M, place_M = answers.predicting(self.device)
        hidden_MD = self._trunk(ids_BT)[row_M, place_M]
        weight_VD, vocab_size, softcap = self._head()
        tokens_M = answers.tokens(self.device)
        return linear_logprobs(hidden_MD, weight_VD, tokens_M, vocab_size, softcap, self.temperature)

    @torch.no_grad()
    def scored(self, answers: Answers) -> list[Tensor]:
        """Log-probabilities without gradients, (N,) on the CPU for each answer; in batches of like length."""
        return answers.in_batches(lambda some: self.logprobs(some)[0])

    def _head(self) -> tuple[Tensor, int, float | None]:
        model = self.model
        if hasattr(model, "hidden"):
            return model.head_weight, model.config.vocab_size, model.softcap
        weight = model.get_output_embeddings().weight
        return weight, len(weight), getattr(model.config, "final_logit_softcapping", None)

    @torch.no_grad()
    def _check_head(self) -> None:
        """See that the product of hidden states and head is what the model itself gives as logits."""
        ids = torch.arange(1, 5, device=self.device)[None] % self.model.config.vocab_size
        weight_VD, _, softcap = self._head()
        logits = self._trunk(ids) @ weight_VD.T
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        if not torch.allclose(logits.float(), self.model(ids).logits.float(), atol=LOGIT_TOLERANCE):
            raise ModelError(
                f"{type(self.model).__name__}: its logits are not the product of its last hidden states and its head, "
                "so its log-probabilities can't be worked out here; use a gpt2, qwen3, nanochat, llama ... model"
            )


def trunk(model: Any) -> Any:
    """The function from ids (B, T), padded to the right, to hidden states (B, T, D) after the last norm."""
    if hasattr(model, "hidden"):
        return model.hidden
    return lambda ids_BT: model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
