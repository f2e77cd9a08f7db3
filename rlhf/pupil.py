"""A model that one of TRL's trainers teaches, and the model that it was: what it answers, and how far it has come."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetune import vocabulary
from fledge.errors import ModelError
from fledge.models import adapters, generation
from fledge.models.folder import find_model, load_by_transformers, load_model
from fledge.tokens import TextTokenizer
from rlhf import rollout, told
from rlhf.policy import Answers, Policy
from rlhf.prompts import Asked
from rlhf.rollout import Written
from rlhf.scoring import Reward
from tokenizer import chat

AT_ONCE = 64  # answers to held-out prompts that are written side by side


@dataclass
class Pupil:
    """See the module. `settings` has the groups `sampling`, `lora` and `run`, and the field `model`."""

    settings: Any
    path: Path  # of the parent
    model: Any  # transformers' class, perhaps with adapters
    tokenizer: TextTokenizer
    stop_ids: tuple[int, ...]

    @classmethod
    def open(cls, settings: Any) -> "Pupil":
        """Load the model; with adapters on it where the settings say so.

        Raises:
            ModelError: no model, or its chat template does not say what is an answer.
        """
        path = find_model(settings.model)
        tokenizer = TextTokenizer.from_folder(path)
        if getattr(settings, "plain_prompts", False):
            tokenizer.chat_template = None
        template = tokenizer.chat_template
        if template is not None and not chat.has_generation_blocks(template):
            raise ModelError(
                f"{path}: its chat template does not mark what the assistant says; teach it fledge's first: "
                f"fledge finetune instruct {settings.model} --data ..."
            )
        model = load_by_transformers(path)
        if settings.lora.rank:
            model = adapters.add_lora(model, **settings.lora.model_dump(), seed=settings.run.seed)
        return cls(settings, path, model, tokenizer, vocabulary.stop_ids(tokenizer))

    @property
    def context(self) -> int:
        """How many tokens the model can read."""
        return generation.context_of(self.model)

    def write(self, model: nn.Module, prompts: Sequence[Sequence[int]], at_once: int, *occasion: Any) -> list[Written]:
        """Answers to prompts of ids.

        Args:
            occasion: what the random numbers are for; the same occasion and weights give the same answers.
        """
        sampling = rollout.sampling_of(self.settings.sampling, self.stop_ids, self.settings.run.seed, *occasion)
        return rollout.write(model, prompts, sampling, self.tokenizer, at_once)

    def text(self, answer: Sequence[int]) -> str:
        """An answer's text, without what ended it."""
        return self.tokenizer.decode(answer[:-1] if answer[-1] in self.stop_ids else answer)

    def measure(
        self, model: Any, asked: Sequence[Asked], occasion: str, reward: Reward | None = None
    ) -> dict[str, Any]:
        """Answers to held-out prompts: KL from the parent and score of each, and means.

        Args:
            occasion: as of `write`. Another one in the end than in the checks, where the best step is picked by luck,
                too.
        Returns:
            see `told.measured`.
        """
        prompts = [one.ids for one in asked]
        written = self.write(model, prompts, AT_ONCE, occasion)
        references = self._references(model, Answers(prompts, [answer.ids for answer in written]))
        kls = [
            sum(answer.logprobs) - float(reference_N.double().sum())
            for answer, reference_N in zip(written, references, strict=True)
        ]
        scores = reward.score([one.row for one in asked], [answer.text for answer in written]) if reward else None
        return told.measured(asked, written, kls, scores, self.settings.validation.samples)

    @cached_property
    def _copy(self) -> Policy:
        """The parent, frozen."""
        model = load_model(self.path, device=self.settings.run.device).requires_grad_(False)
        return Policy(model, self.settings.sampling.temperature)

    def _references(self, model: Any, answers: Answers) -> list[Tensor]:
        """The parent's log-probabilities of answers: `model` without its adapters, or else a frozen copy."""
        if not hasattr(model, "disable_adapter"):
            return self._copy.scored(answers)
        with model.disable_adapter():
            return Policy(model.get_base_model(), self.settings.sampling.temperature).scored(answers)
