"""A model that one of TRL's trainers teaches, and the model that it was: what it answers, and how far it has come."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from finetune import vocabulary
from fledge import console, lineage
from fledge.errors import ModelError
from fledge.models import adapters, generation
from fledge.models.folder import find_model, load_by_transformers, load_model
from fledge.models.generation import Sampling
from fledge.rundir import RunFolder, require_disk
from fledge.tokens import TextTokenizer
from rlhf import rollout
from rlhf.policy import Answers, Policy
from rlhf.prompts import Asked
from rlhf.scoring import Reward
from tokenizer import chat

CELL = 160  # characters of a text in a table


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
        stops = vocabulary.stop_ids(tokenizer) if template is not None else (tokenizer.end_of_text_id,)
        model = load_by_transformers(path)
        if settings.lora.rank:
            model = adapters.add_lora(model, **settings.lora.model_dump(), seed=settings.run.seed)
        return cls(settings, path, model, tokenizer, stops)

    @property
    def context(self) -> int:
        """How many tokens the model can read."""
        return generation.context_of(self.model)

    def announce(self) -> None:
        """Say how large the model is."""
        weights = list(self.model.parameters())
        trained, count = sum(p.numel() for p in weights if p.requires_grad), console.format_count
        rank = self.settings.lora.rank
        console.note(
            f"{self.path}: {count(sum(p.numel() for p in weights))} parameters, {count(trained)} trained"
            + (f" (LoRA of rank {rank}); the reference is the model without adapters" if rank else "")
        )

    def record(self, folder: RunFolder, **facts: Any) -> None:
        """Write parents, tokenizer and other facts to lineage.json; a resumed run must still find the same.

        Raises:
            RunError: it does not, or the disk has no room for a new run.
        """
        facts |= {
            "parents": [lineage.parent(self.path, "model")],
            "tokenizer": self.tokenizer.fingerprint,
            "chat_template": lineage.sha256_text(self.tokenizer.chat_template or ""),
        }
        if folder.resumes_from:
            lineage.require_same(folder.path, facts)
        else:
            # Weights and two moments of what is trained, a checkpoint; one more while the oldest is there, the best.
            each = 12 * sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            whole = 4 * sum(p.numel() for p in self.model.parameters())
            kept = self.settings.run.keep_checkpoints + 2
            require_disk(folder.path, each * kept + whole, "the checkpoints and the model")
        folder.add_lineage(**facts)

    # --- what it answers ---

    def write(self, model: nn.Module, prompts: Sequence[Sequence[int]], *occasion: Any, at_once: int = 64) -> Any:
        """Answers to prompts of ids, each a completion and its text.

        Args:
            occasion: what the random numbers are for; the same occasion and weights give the same answers.
        """
        key = repr((self.settings.run.seed, *occasion)).encode()
        sampling = Sampling(
            max_new_tokens=self.settings.sampling.max_new_tokens,
            temperature=self.settings.sampling.temperature,
            stop_ids=self.stop_ids,
            seed=int.from_bytes(blake2b(key, digest_size=8).digest(), "little"),
        )
        asked = [Asked({}, [], list(ids)) for ids in prompts]
        return rollout.write(model, asked, sampling, self.tokenizer, at_once)

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
            `scores` (with a reward), `kl` (nats an answer), `stopped_share`, `answer_tokens`, and `samples`.
        """
        written = self.write(model, [one.ids for one in asked], occasion)
        ids, texts = [completion.ids for completion, _ in written], [text for _, text in written]
        references = self._references(model, Answers([one.ids for one in asked], ids))
        kls = [
            sum(completion.logprobs) - float(reference_N.double().sum())
            for (completion, _), reference_N in zip(written, references, strict=True)
        ]
        scores = reward.score([one.row for one in asked], texts) if reward else None
        stopped = fmean(completion.finish == "stop" for completion, _ in written)
        samples: list[dict[str, Any]] = [
            {"prompt": one.messages[-1]["content"], "text": text, "kl": kl}
            | ({"reward": scores[place]} if scores else {})
            for place, (one, text, kl) in enumerate(zip(asked, texts, kls, strict=True))
        ]
        return ({"scores": scores} if scores else {}) | {
            "kl": fmean(kls),
            "stopped_share": stopped,
            "answer_tokens": fmean(map(len, ids)),
            "samples": samples[: self.settings.validation.samples],
        }

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


def table(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Samples as lines of a Markdown table; nothing where there are none."""
    if not samples:
        return []
    has_reward = "reward" in samples[0]
    lines = ["", "## Answers", "", f"| prompt | answer |{' reward |' * has_reward} KL |"]
    lines.append(f"|---|---|{'---|' * has_reward}---|")
    for sample in samples:
        reward = f" {sample['reward']:.3g} |" if has_reward else ""
        lines.append(f"| {_cell(sample['prompt'])} | {_cell(sample['text'])} |{reward} {sample['kl']:.2f} |")
    return lines


def _cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= CELL else f"{line[: CELL - 3]}..."
