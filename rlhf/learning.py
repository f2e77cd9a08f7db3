"""One step's learning: epochs of minibatches over its episodes, for policy and critic."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fledge import processes
from fledge.errors import RunFailed
from rlhf import losses
from rlhf.config import PpoConfig
from rlhf.critic import Critic
from rlhf.policy import Policy
from rlhf.rollout import Lesson
from rlhf.session import Session


@dataclass
class Learned:
    """What a step's updates have added up to."""

    updates: int = 0  # of the policy
    critic_updates: int = 0
    tokens: int = 0  # read in the policy's updates
    clipped: float = 0.0  # of these
    entropy: float = 0.0  # over them, nats
    policy_loss: float = 0.0  # over updates
    gradient_norm: float = 0.0  # of the policy, over updates
    value_loss: float = 0.0  # over the critic's updates
    step_kl: float = 0.0  # nats/token, of the last minibatch: how far the step has moved the policy
    ratio_error: float = 0.0  # largest |ratio - 1| in the first minibatch, before any update
    stopped_early: bool = False

    def metrics(self) -> dict[str, float]:
        """Means, by their names in metrics.jsonl; without an update of the policy nothing is known of it."""
        found = {"value_loss": self.value_loss / self.critic_updates, "updates": self.updates}
        if not self.updates:
            return found
        return found | {
            "entropy": self.entropy / self.tokens,
            "policy_loss": self.policy_loss / self.updates,
            "clipped_share": self.clipped / self.tokens,
            "ratio_error": self.ratio_error,
            "step_kl": self.step_kl,
            "gradient_norm": self.gradient_norm / self.updates,
        }


class Learner:
    """Learns from lessons, with the engines of a session."""

    def __init__(self, settings: PpoConfig, session: Session, policy: Policy, critic: Critic) -> None:
        self._settings, self._session, self._policy, self._critic = settings, session, policy, critic

    def learn(self, lesson: Lesson) -> Learned:
        """All epochs over a lesson; in warm-up the critic's alone.

        Raises:
            RunFailed: a loss or gradient is not finite; names step and whose.
        """
        settings, counters = self._settings, self._session.counters
        size, learned = settings.batch.minibatch, Learned()
        trains_policy = counters.step >= settings.optim.critic_warmup
        for epoch in range(settings.batch.epochs):
            random = np.random.default_rng([settings.run.seed, 1, counters.step, epoch])
            order = random.permutation(len(lesson.answers)).tolist()
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                if trains_policy and not learned.stopped_early:
                    self._update_policy(lesson, rows, learned)
                self._update_critic(lesson, rows, learned)
                processes.progress()
            if learned.stopped_early:
                break
        return learned

    def _update_policy(self, lesson: Lesson, rows: Sequence[int], learned: Learned) -> None:
        num_tokens = sum(lesson.answers.lengths[row] for row in rows)
        found: list[tuple[losses.PolicyLoss, Tensor]] = []

        def loss(some: Sequence[int]) -> Tensor:
            logprob_M, entropy_M = self._policy.logprobs(lesson.answers.rows(some))
            old_M, advantage_M = (lesson.of(some, name, self._policy.device) for name in ("logprob_BN", "advantage_BN"))
            part = losses.policy_loss(logprob_M, old_M, advantage_M, self._settings.clip.ratio)
            found.append((part, entropy_M.detach().sum()))
            total = part.total
            if self._settings.clip.entropy:
                total = total - self._settings.clip.entropy * entropy_M.sum()
            return total / num_tokens

        result = self._session.actor.update(self._portions(lesson, rows, loss))
        self._require_finite("policy", result.is_finite)
        clipped, kl_old, entropy = processes.total(
            *(float(sum(values)) for values in zip(*((p.clipped, p.kl_old, e) for p, e in found), strict=True))
        )
        if not learned.updates:
            learned.ratio_error = max(processes.gathered(max(float(part.ratio_error) for part, _ in found)))
        learned.updates += 1
        learned.tokens += num_tokens
        learned.clipped += clipped
        learned.entropy += entropy
        learned.policy_loss += result.loss
        learned.gradient_norm += result.gradient_norm
        learned.step_kl = kl_old / num_tokens
        limit = self._settings.clip.stop_kl
        learned.stopped_early = bool(limit) and learned.step_kl > limit

    def _update_critic(self, lesson: Lesson, rows: Sequence[int], learned: Learned) -> None:
        num_tokens = sum(lesson.answers.lengths[row] for row in rows)

        def loss(some: Sequence[int]) -> Tensor:
            value_M = self._critic.values(lesson.answers.rows(some))
            old_M, return_M = (lesson.of(some, name, value_M.device) for name in ("value_BN", "return_BN"))
            return losses.value_loss(value_M, old_M, return_M, self._settings.clip.value) / num_tokens

        result = self._session.critic.update(self._portions(lesson, rows, loss))
        self._require_finite("critic", result.is_finite)
        learned.value_loss += result.loss
        learned.critic_updates += 1

    def _portions(
        self, lesson: Lesson, rows: Sequence[int], loss: Callable[[list[int]], Tensor]
    ) -> list[Callable[[], Tensor]]:
        """The loss over this process's rows in microbatches of like length; equally many in every process."""
        lengths = [len(ids) for ids in lesson.answers.ids]
        ordered = sorted(rows, key=lambda row: lengths[row])
        num = math.ceil(len(ordered) / (self._settings.batch.microbatch * processes.size()))
        portions = np.array_split(np.array(ordered), num)
        return [functools.partial(loss, portion[processes.rank() :: processes.size()].tolist()) for portion in portions]

    def _require_finite(self, whose: str, is_finite: bool) -> None:
        if not is_finite:
            raise RunFailed(
                f"step {self._session.counters.step + 1}: the {whose}'s loss or gradient is not finite; lower its "
                "learning rate (--optim.learning-rate, --optim.critic-learning-rate) and start a new run"
            )
