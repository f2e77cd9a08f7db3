"""Scores of a reward model: any folder for sequence classification with one label."""

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.data.messages import Message
from fledge.errors import ModelError
from fledge.models import classifier
from fledge.models.classifier import Classifier
from tokenizer import chat


@dataclass
class RewardModel:
    """A reward model, to be trained or asked: both read a conversation as `ids` gives it."""

    inner: Classifier
    num_cut: int = 0  # conversations so far that were longer than the context

    @classmethod
    def open(cls, path: str, device: str = "cpu") -> "RewardModel":
        """Load a run, model folder or hub name.

        Raises:
            ModelError: no classifier, or one of several labels.
        """
        loaded = classifier.load(path, device, is_reward=True)
        if len(loaded.labels) != 1:
            raise ModelError(f"{path}: a classifier of {len(loaded.labels)} labels; a reward model has one")
        return cls(loaded)

    def score(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        """The reward of each answer to its prompt, in the model's chat template where it has one.

        A conversation that is too long for the context loses its beginning.
        """
        ids = [self.ids(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        return [float(reward) for reward in self.inner.logits(ids)[:, 0]]

    def ids(self, prompt: Sequence[Message], answer: str) -> list[int]:
        """What the model reads of one answer; the reward is read at the last id."""
        tokenizer = self.inner.tokenizer
        messages = [*prompt, {"role": "assistant", "content": answer}]
        if tokenizer.chat_template is not None:
            ids = chat.render(tokenizer, messages).ids
        else:
            ids = tokenizer.encode("\n\n".join(message["content"] for message in messages))
        while ids and ids[-1] == self.inner.pad_id:  # transformers' classes would take it for padding
            ids.pop()
        config = self.inner.model.config
        limit = getattr(config, "max_position_embeddings", None) or classifier.CONTEXT_DEFAULT
        self.num_cut += len(ids) > limit
        return ids[-limit:] or [tokenizer.end_of_text_id]
