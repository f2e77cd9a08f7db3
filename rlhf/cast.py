"""Who takes part in a PPO run: policy, reference, critic, reward and prompts."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune import published, vocabulary
from fledge import console, device, processes
from fledge.data.sources import describe
from fledge.models import generation
from fledge.models.folder import find_model, load_model
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer
from rlhf import prompts, rollout, scoring
from rlhf.config import PpoConfig
from rlhf.critic import Critic, new_head
from rlhf.policy import Answers, Policy
from rlhf.prompts import Asked, Prompts
from rlhf.rollout import Episode, Written
from rlhf.scoring import Reward
from rlhf.shared_trunk import CRITIC, POLICY, SharedTrunk


@dataclass
class Cast:
    """See the module."""

    settings: PpoConfig
    path: Path  # of the parent
    tokenizer: TextTokenizer
    policy: Policy
    reference: Policy  # the parent, as it stays
    critic: Critic
    trunk: SharedTrunk | None  # what all three share; None: each has weights of its own
    reward: Reward
    gold: Reward | None
    prompts: Prompts
    stop_ids: tuple[int, ...]
    sampler: Any  # a bfloat16 copy of the policy to sample with; None: the policy itself

    @classmethod
    def open(cls, settings: PpoConfig) -> "Cast":
        """Load everybody.

        Raises:
            FledgeError: a model, reward or prompts are not as they should be.
        """
        place = settings.run.device
        path = find_model(settings.model)
        tokenizer = TextTokenizer.from_folder(path)
        if settings.plain_prompts:
            tokenizer.chat_template = None
        model = load_model(path, device=place)
        reward = scoring.open_reward(settings.reward, place)
        scoring.announce(reward, tokenizer)
        gold = scoring.open_reward(settings.gold, place) if settings.gold else None
        room = generation.context_of(model) - settings.sampling.max_new_tokens
        asked = prompts.read(settings.prompts, tokenizer, room, settings.validation.share, settings.max_bad_share)
        temperature, trunk = settings.sampling.temperature, None
        if settings.lora.rank:
            head, trunk = new_head(model), SharedTrunk(model, settings.lora, settings.run.seed)
            model.to(place)
            console.note(f"policy, critic and reference share the weights (LoRA of rank {settings.lora.rank})")
            critic = Critic(model, head, functools.partial(trunk.wear, CRITIC))
            reference = Policy(model, temperature, functools.partial(trunk.wear, None))
            policy = Policy(model, temperature, functools.partial(trunk.wear, POLICY))
            trunk.wear(POLICY)
        else:
            critic = _critic(reward, model, tokenizer).to(place)
            reference = Policy(copy.deepcopy(model).requires_grad_(False), temperature)
            policy = Policy(model.requires_grad_(True), temperature)
        is_bfloat16 = settings.run.dtype == "bfloat16"
        return cls(
            settings=settings,
            path=path,
            tokenizer=tokenizer,
            policy=policy,
            reference=reference,
            critic=critic,
            trunk=trunk,
            reward=reward,
            gold=gold,
            prompts=asked,
            stop_ids=vocabulary.stop_ids(tokenizer),
            sampler=copy.deepcopy(model).to(torch.bfloat16) if is_bfloat16 else None,
        )

    def trained(self) -> tuple[nn.Module, nn.Module]:
        """What the engines of policy and critic train."""
        if self.trunk is None:
            return self.policy.model, self.critic
        self.policy.wear()
        actor = nn.ParameterList(p for p in self.policy.model.parameters() if p.requires_grad)
        self.trunk.wear(CRITIC)
        critic = nn.ParameterList(p for p in self.critic.parameters() if p.requires_grad)
        return actor.requires_grad_(True), critic  # both, for the engines to see; whoever is worn next changes that

    def final_model(self) -> Any:
        """The policy's model, with its adapter in its weights."""
        return self.policy.model if self.trunk is None else self.trunk.merged()

    def record(self, folder: RunFolder) -> None:
        """See `published.record`."""
        both = nn.ModuleList([self.policy.model, self.critic])
        rewards = [r.identity for r in (self.reward, self.gold) if r]
        read = {"sources": describe(self.prompts.sources), "prompts": len(self.prompts.train)}
        published.record(folder, self.settings.run, self.path, self.tokenizer, both, rewards=rewards, data=read)

    def training_prompts(self, step: int) -> list[Asked]:
        """What a step asks."""
        wanted, settings = self.prompts.train, self.settings
        numbers = rollout.prompts_of_step(len(wanted), settings.rollout.episodes, settings.run.seed, step)
        return [wanted[number] for number in numbers]

    def write(self, asked: Sequence[Asked], *occasion: Any) -> list[Written]:
        """Answers to this process's share of prompts.

        Args:
            occasion: what the random numbers are for; the same occasion and policy give the same answers.
        """
        settings = self.settings
        occasion = (settings.run.seed, processes.rank(), *occasion)
        sampling = rollout.sampling_of(settings.sampling, self.stop_ids, *occasion)
        self.policy.wear()
        model = self.policy.model
        if self.sampler is not None:
            with torch.no_grad():
                for ours, trained in zip(self.sampler.parameters(), model.parameters(), strict=True):
                    ours.copy_(trained)
            model = self.sampler
        return rollout.write(model, [one.ids for one in asked], sampling, self.tokenizer, settings.rollout.at_once)

    def judge(self, asked: Sequence[Asked], written: Sequence[Written], with_values: bool) -> list[Episode]:
        """Episodes of all processes, from this one's share: scores, reference and (for training) values."""
        answers = Answers([one.ids for one in asked], [answer.ids for answer in written])
        scores = self.reward.score([one.row for one in asked], [answer.text for answer in written])
        with self._forward():
            references = self.reference.scored(answers)
            values = self.critic.scored(answers) if with_values else [torch.zeros(len(a)) for a in answers.answers]
        mine = [
            Episode(one.ids, answer, score, reference_N, value_N)
            for one, answer, score, reference_N, value_N in zip(asked, written, scores, references, values, strict=True)
        ]
        shares = processes.gathered(mine)
        total = sum(map(len, shares))
        return [shares[n % len(shares)][n // len(shares)] for n in range(total)]  # as `share` has dealt them

    def _forward(self) -> torch.autocast:
        dtype = device.torch_dtype(self.settings.run.dtype)
        return torch.autocast(self.settings.run.device, dtype, enabled=dtype != torch.float32)


def _critic(reward: Reward, model: Any, tokenizer: TextTokenizer) -> Critic:
    """The reward model as a critic, where it reads the policy's ids as they are; else the policy."""
    if reward.path and reward.tokenizer and reward.tokenizer.fingerprint == tokenizer.fingerprint:
        console.note("the critic begins as the reward model")
        return Critic.from_reward_model(reward.path)
    console.note("the critic begins as the policy")
    return Critic.from_policy(model)


def share(rows: Sequence[Any]) -> list[Any]:
    """This process's part of rows that all processes have."""
    return list(rows[processes.rank() :: processes.size()])
