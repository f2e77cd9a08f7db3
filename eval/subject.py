"""The model under measurement: its folder, its run, its tokenizer, and how it answers requests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.baselines import NgramModel
from eval.config import TaskConfig
from eval.items import Answer, Generated, Generation, Item, Likelihood, LogLikelihood
from eval.likelihood import Scorer, halved
from fledge import console, lineage
from fledge.device import resolve_device
from fledge.endings import end_ids
from fledge.errors import FledgeError
from fledge.models import generation
from fledge.models.folder import find_model
from fledge.models.loaded import LoadedModel, load
from fledge.tokens import TextTokenizer
from fledge.village import spec
from tokenizer import chat, shards

NGRAM_TOKENS = 2_000_000  # of the training shards: counted within seconds, and later ones add little
GENERATED_AT_ONCE = 32  # answers written side by side; more pays little on a CPU


@dataclass
class Subject:
    """A model with everything that tasks need to know of it; it is loaded when the first of them asks for it."""

    path: Path  # the model folder
    device: str
    dtype: str  # of the forward pass
    batch_size: int

    @classmethod
    def open(cls, name: str, device: str = "auto", dtype: str = "float32", batch_size: int = 0) -> "Subject":
        """Find a run, model folder or hub name.

        Raises:
            ModelError: no model there.
        """
        return cls(find_model(name), resolve_device(device, "--device"), dtype, batch_size)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load(self.path, device=self.device, tokenizer=self.tokenizer)

    @property
    def model(self) -> Any:
        """The language model."""
        return self._loaded.model

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        return TextTokenizer.from_folder(self.path)

    @cached_property
    def scorer(self) -> Scorer:
        """What scores texts with the model."""
        return Scorer(self.model, self.tokenizer, self.dtype, self.batch_size)

    @property
    def run(self) -> Path | None:
        """The run that made the model; None if it is not of ours."""
        folder = self.path.parent
        return folder if self.path.name == "model" and (folder / "lineage.json").is_file() else None

    @cached_property
    def sha256(self) -> str:
        """Of the model folder's content."""
        return lineage.sha256_folder(self.path)

    @cached_property
    def shards(self) -> Path | None:
        """The token shards that the model, or the nearest of its parents, was trained on; None, aloud, if gone."""
        run = self.run
        while run is not None:
            parents = {parent["kind"]: parent for parent in lineage.read(run)["parents"]}
            if "shards" in parents:
                try:
                    folder = shards.find_folder(lineage.located(run, parents["shards"]))
                    shards.check_tokenizer(folder, self.tokenizer)
                except FledgeError as error:
                    console.note(f"the model's own text can't be read: {error}")
                    return None
                return folder
            above = lineage.located(run, parents["model"]).parent if "model" in parents else None
            run = above if above and (above / "lineage.json").is_file() else None
        return None

    @cached_property
    def ngrams(self) -> NgramModel | None:
        """A 5-gram model of the model's training text; None where that is not here."""
        folder = self.shards
        if folder is None:
            return None
        stream = shards.open_split(folder, "train")
        ids = stream.read(0, min(NGRAM_TOKENS, stream.num_tokens))
        return NgramModel(ids, len(self.tokenizer.token_bytes()))

    @cached_property
    def village(self) -> tuple[str, int] | None:
        """The one village, name and seed, whose stories the model was pretrained on; None for other models."""
        folder = self.shards
        names = shards.read_index(folder).facts.get("sources", []) if folder else []
        if not names or not all(spec.is_spec(str(name)) for name in names):
            return None
        found = [spec.parse_spec(str(name)) for name in names]
        worlds = {(s.world, s.seed) for s in found}
        return worlds.pop() if len(worlds) == 1 and {s.kind for s in found} == {"stories"} else None

    def answer(
        self, items: Sequence[Item], task: TaskConfig, margin: Callable[[Item, Sequence[Answer]], float] | None = None
    ) -> tuple[list[list[Answer]], dict[str, Any]]:
        """The answers to each item's requests, and what a reader must know of how they were had."""
        flat = [request for item in items for request in item.requests]
        likelihoods = [request for request in flat if isinstance(request, LogLikelihood)]
        prompts = [request for request in flat if isinstance(request, Generation)]
        if likelihoods and prompts:
            raise TypeError("an item asks for likelihoods or for answers, not for both")
        if prompts:
            answers: list[Answer] = list(self.generate(prompts))
            template = "the model's own" if task.chat and self.tokenizer.chat_template else "none: plain text"
            settings = {"num_cut": sum(answer.is_cut for answer in answers), "template": template}
            if settings["num_cut"]:
                console.warn(
                    f"{settings['num_cut']} of {len(prompts)} prompts did not fit into the context of "
                    f"{generation.context_of(self.model)} tokens with an answer; their beginning was left out"
                )
            return _per_item(items, answers), settings
        return self.scorer.answer_items(items, margin)

    def ngram_answers(self, items: Sequence[Item], model: NgramModel) -> list[list[Answer]]:
        """What an n-gram model answers to requests for likelihoods."""
        sequences = [tokens for group in self.scorer.encode(items) for tokens in group]
        answers = [
            Likelihood(nats, len(tokens.ids) - tokens.start, False, tokens.is_cut)
            for tokens, nats in zip(sequences, model.totals(sequences), strict=True)
        ]
        return _per_item(items, answers)

    def generate(self, requests: Sequence[Generation]) -> list[Generated]:
        """Greedy answers, each as if it were alone; of a prompt too long for the context the end is read."""
        asked = [self._sampling(request) for request in requests]
        answers: dict[int, Generated] = {}
        for sampling in dict.fromkeys(asked):
            places = [i for i, own in enumerate(asked) if own == sampling]
            prompts = [self._prompt_ids(requests[i]) for i in places]
            room = generation.context_of(self.model) - sampling.max_new_tokens
            completions = self.continued([prompt[-room:] for prompt in prompts], sampling)
            for i, prompt, completion in zip(places, prompts, completions, strict=True):
                text = generation.text_of(self.tokenizer, completion)
                has_stopped, is_cut = completion.finish == "stop", len(prompt) > room
                answers[i] = Generated(text, has_stopped, len(completion.ids), is_cut)
        return [answers[i] for i in range(len(requests))]

    def continued(self, prompts: Sequence[Sequence[int]], sampling: generation.Sampling) -> list[generation.Completion]:
        """What the model writes behind prompts of ids; smaller batches where memory does not suffice."""
        waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, generation.Completion] = {}
        at_once = self.batch_size or GENERATED_AT_ONCE
        with console.progress("answers", len(prompts)) as bar:
            while waiting:
                batch = waiting[:at_once]
                rows = [prompts[i] for i in batch]
                try:
                    completions = generation.generate(self.model, rows, sampling, self.tokenizer.token_bytes())
                except RuntimeError as error:
                    at_once = halved(len(batch), error)
                    continue
                found.update(zip(batch, completions, strict=True))
                waiting = waiting[len(batch) :]
                bar.advance(len(batch))
        return [found[i] for i in range(len(prompts))]

    def _sampling(self, request: Generation) -> generation.Sampling:
        sampling = generation.Sampling(
            # Of a short context half is the prompt's.
            max_new_tokens=min(request.max_new_tokens, generation.context_of(self.model) // 2),
            temperature=0.0,
            stop_ids=end_ids(self.path, self.tokenizer, of_turn=not isinstance(request.prompt, str)),
            stop_strings=request.stop,
        )
        return generation.fitted(self.model, self.tokenizer, sampling)

    def _prompt_ids(self, request: Generation) -> list[int]:
        if isinstance(request.prompt, str) or self.tokenizer.chat_template is None:
            text = request.prompt if isinstance(request.prompt, str) else _plain(request.prompt)
            return self.tokenizer.encode(text) or [self.tokenizer.end_of_text_id]
        return chat.render(self.tokenizer, request.prompt, add_generation_prompt=True).ids


def _plain(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation for a model without a chat template: the texts, an empty line behind each."""
    return "".join(f"{message['content']}\n\n" for message in messages)


def _per_item(items: Sequence[Item], answers: Sequence[Answer]) -> list[list[Answer]]:
    given = iter(answers)
    return [[next(given) for _ in item.requests] for item in items]
