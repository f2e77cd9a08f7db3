"""PPO against problems so small that the best policy is known: it goes there, and nowhere else."""

import copy

import pytest
import torch
from torch import Tensor

from fledge.models import architecture, generation
from fledge.models.generation import Sampling
from rlhf.config import PpoConfig
from rlhf.critic import Critic
from rlhf.learning import Learner
from rlhf.policy import Answers, Policy
from rlhf.rollout import Episode, Written, lesson_of
from rlhf.session import Session

VOCABULARY, EPISODES, PROMPT = 6, 256, [0]


def trained(scores: Tensor, kl_weight: float, steps: int) -> tuple[Tensor, Tensor]:
    """Probabilities of all answers, before and after PPO; shape of `scores`: one dimension a token of the answer."""
    num_tokens = scores.ndim
    shape = architecture.find_config("gpt2").sized(
        vocab_size=VOCABULARY, context=4, layers=1, width=32, heads=2, bos_id=None, eos_id=None, pad_id=None
    )
    model = architecture.build(shape, 3)
    with torch.no_grad():
        model.token_embed.weight.mul_(3)  # a reference that prefers some tokens
    settings = PpoConfig.model_validate(
        {
            "model": "m",
            "reward": "r",
            "prompts": ["p"],
            "rollout": {"episodes": EPISODES},
            "batch": {"epochs": 2, "minibatch": 128, "microbatch": 128},
            "optim": {"learning_rate": 2e-3, "critic_learning_rate": 1e-2, "schedule": "linear", "beta2": 0.99},
            "clip": {"value": 0},
            "advantage": {"whiten": False, "trace": 1.0},
            "kl": {"weight": kl_weight},
            "scores": {"unfinished_penalty": 0},
            "run": {"device": "cpu", "dtype": "float32", "max_steps": steps},
            "engine": {"kind": "torch"},
        }
    )
    policy, reference = Policy(model), Policy(copy.deepcopy(model).requires_grad_(False))
    critic = Critic.from_policy(model)
    session = Session(settings, model, critic)
    learner = Learner(settings, session, policy, critic)
    for step in range(steps):
        written = generation.generate(model, [PROMPT] * EPISODES, Sampling(max_new_tokens=num_tokens, seed=step))
        answers = Answers([PROMPT] * EPISODES, [completion.ids for completion in written])
        values, references = critic.scored(answers), reference.scored(answers)
        episodes = [
            Episode(PROMPT, Written(c.ids, c.logprobs, "", False), float(scores[tuple(c.ids)]), ref, value)
            for c, ref, value in zip(written, references, values, strict=True)
        ]
        session.set_learning_rates()
        learner.learn(lesson_of(episodes, session.scale, kl_weight, settings.scores, "k1", settings.advantage))
        session.counters.step += 1
    return distribution(reference, num_tokens), distribution(policy, num_tokens)


def distribution(policy: Policy, num_tokens: int) -> Tensor:
    answers = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * num_tokens).view(-1, num_tokens).tolist()
    logprobs = policy.scored(Answers([PROMPT] * len(answers), answers))
    return torch.stack([logprob.sum() for logprob in logprobs]).exp().view([VOCABULARY] * num_tokens)


@pytest.mark.parametrize("kl_weight", [0.3, 1.0])
def test_one_step_ends_at_the_tilted_reference(kl_weight: float) -> None:
    scores = torch.tensor([0.5, -1.0, 1.0, 0.0, 0.8, -0.3])
    before, after = trained(scores, kl_weight, 50)
    best = before * torch.exp(scores / kl_weight)
    best /= best.sum()
    assert 0.5 * (before - best).abs().sum() > 0.1
    assert 0.5 * (after - best).abs().sum() <= 0.02


def test_two_steps_end_at_the_solution_by_dynamic_programming() -> None:
    kl_weight = 0.5
    scores = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
    before, after = trained(scores, kl_weight, 100)
    first = before.sum(1)
    second = before / first[:, None]
    # Backwards: what each first token is worth, then how it is chosen.
    worth = kl_weight * torch.log((second * torch.exp(scores / kl_weight)).sum(1))
    best_second = second * torch.exp((scores - worth[:, None]) / kl_weight)
    best_first = first * torch.exp(worth / kl_weight)
    best = (best_first / best_first.sum())[:, None] * best_second
    assert torch.allclose(best.sum(), torch.tensor(1.0))
    assert 0.5 * (before - best).abs().sum() > 0.1
    assert 0.5 * (after - best).abs().sum() <= 0.02
