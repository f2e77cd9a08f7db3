"""Episodes: which prompts, which token earns the score, how scores are scaled."""

import math
from pathlib import Path

import pytest
import torch

from fledge.models.folder import load_model
from fledge.models.generation import Sampling
from fledge.tokens import TextTokenizer
from rlhf.config import AdvantageConfig, RewardShapeConfig, SamplingConfig
from rlhf.rollout import Episode, RewardScale, Written, lesson_of, prompts_of_step, sampling_of, token_rewards, write


def episode(num_tokens: int, score: float, is_stopped: bool = True, ratio: float = 0.0) -> Episode:
    return Episode(
        prompt=[1] * 3,
        answer=Written([2] * num_tokens, [-1.0 + ratio] * num_tokens, "", is_stopped),
        score=score,
        reference_N=torch.full((num_tokens,), -1.0),
        value_N=torch.zeros(num_tokens),
    )


@pytest.mark.parametrize("longest", [4, 5, 9])
def test_the_score_falls_on_the_last_token_of_each_answer_once(longest: int) -> None:
    """Whatever the padding behind it."""
    lengths_B = torch.tensor([1, 4, 2])
    reward_BN = token_rewards(torch.tensor([3.0, -2.0, 5.0]), torch.zeros(3, longest), lengths_B, 0.1)
    expected_BN = torch.zeros(3, longest)
    for row, (length, score) in enumerate([(1, 3.0), (4, -2.0), (2, 5.0)]):
        expected_BN[row, length - 1] = score
    assert torch.equal(reward_BN, expected_BN)


def test_every_token_pays_for_its_kl() -> None:
    reward_BN = token_rewards(torch.tensor([1.0]), torch.tensor([[0.5, -0.25, 0.0]]), torch.tensor([2]), 0.2)
    torch.testing.assert_close(reward_BN, torch.tensor([[-0.1, 1.05, 0.0]]))


def lesson_scores(episodes: list[Episode], shape: RewardShapeConfig, scale: RewardScale) -> list[float]:
    """What each answer earned: with values of 0, trace 1 and no KL the first token's return."""
    advantage = AdvantageConfig(trace=1.0, whiten=False)
    return lesson_of(episodes, scale, 0.0, shape, "k1", advantage).return_BN[:, 0].tolist()


def test_an_answer_that_does_not_end_is_fined() -> None:
    episodes = [episode(2, 1.0), episode(3, 1.0, is_stopped=False)]
    assert lesson_scores(episodes, RewardShapeConfig(unfinished_penalty=0.5), RewardScale()) == [1.0, 0.5]


def test_scores_are_scaled_by_all_that_came_before_and_then_clipped() -> None:
    scale, shape = RewardScale(), RewardShapeConfig(scale="running", clip=1.5)
    lesson_scores([episode(1, 10.0), episode(1, -10.0)], shape, scale)
    found = lesson_scores([episode(1, 20.0), episode(1, 4.0)], shape, scale)
    divisor = float(torch.tensor([10.0, -10.0, 20.0, 4.0]).std(unbiased=False))
    assert found == pytest.approx([1.5, 4 / divisor], rel=1e-6)


def test_scores_are_clipped_on_both_sides() -> None:
    episodes = [episode(1, score) for score in (-9.0, -1.0, 1.0, 9.0)]
    assert lesson_scores(episodes, RewardShapeConfig(clip=2.0), RewardScale()) == [-2, -1, 1, 2]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_kl_is_priced_by_the_estimator_that_was_asked_for(estimator: str) -> None:
    # Of one token, with a value of 0, the return is its reward: -0.5 of its KL, where log(policy / reference) is 0.3.
    advantage = AdvantageConfig(whiten=False)
    told = lesson_of([episode(1, 0.0, ratio=0.3)], RewardScale(), 0.5, RewardShapeConfig(), estimator, advantage)
    nats = {"k1": 0.3, "k3": math.exp(-0.3) - 1 + 0.3}[estimator]
    assert float(told.return_BN[0, 0]) == pytest.approx(-0.5 * nats, abs=1e-6)


def test_a_late_score_is_discounted() -> None:
    advantage = AdvantageConfig(discount=0.5, trace=1.0, whiten=False)
    told = lesson_of([episode(3, 8.0)], RewardScale(), 0.0, RewardShapeConfig(), "k1", advantage)
    assert told.return_BN[0].tolist() == [2, 4, 8]


def test_the_running_deviation_is_that_of_all_scores_together() -> None:
    scale, scores = RewardScale(), torch.randn(60, generator=torch.Generator().manual_seed(0)) * 3 + 5
    for part in scores.split([7, 20, 1, 32]):
        scale.update(part.tolist())
    assert scale.divisor == pytest.approx(float(scores.std(unbiased=False)), rel=1e-5)


def test_equal_scores_are_not_divided_by_what_rounding_leaves() -> None:
    scale = RewardScale()
    for _ in range(5):
        scale.update([0.1] * 3)  # whose mean is 0.1 + 1.4e-17
        assert scale.divisor == 1
    scale.update([0.1 + 1e-6])
    assert 0 < scale.divisor < 1e-6


def test_padding_of_a_batch_does_not_move_its_lesson() -> None:
    shape, advantage = RewardShapeConfig(), AdvantageConfig(whiten=False)
    short, long = episode(2, 1.0, ratio=0.3), episode(9, 1.0)
    alone = lesson_of([short], RewardScale(), 0.1, shape, "k1", advantage)
    together = lesson_of([short, long], RewardScale(), 0.1, shape, "k1", advantage)
    torch.testing.assert_close(together.advantage_BN[0, :2], alone.advantage_BN[0])


def test_only_what_ended_an_answer_is_left_out_of_its_text(qwen3: Path, tokenizer: TextTokenizer) -> None:
    sampling = Sampling(max_new_tokens=6, stop_ids=tuple(range(100, 200)))
    written = write(load_model(qwen3), [[5, 6, 7]] * 16, sampling, tokenizer, at_once=16)
    assert len({answer.has_stopped for answer in written}) == 2
    for answer in written:
        assert answer.text == tokenizer.decode(answer.ids[: -1 if answer.has_stopped else None])


def test_copies_of_a_prompt_get_answers_of_their_own(qwen3: Path, tokenizer: TextTokenizer) -> None:
    written = write(load_model(qwen3), [[5, 6, 7]] * 8, Sampling(max_new_tokens=6), tokenizer, at_once=4)
    assert len({tuple(answer.ids) for answer in written}) == 8


def test_prompts_come_pass_after_pass_and_each_once_a_pass() -> None:
    numbers = [number for step in range(10) for number in prompts_of_step(7, 5, seed=3, step=step)]
    for start in range(0, 49, 7):
        assert sorted(numbers[start : start + 7]) == list(range(7))
    assert numbers[:7] != numbers[7:14]


def test_another_seed_asks_in_another_order() -> None:
    assert prompts_of_step(50, 50, seed=0, step=0) != prompts_of_step(50, 50, seed=1, step=0)


def test_answers_are_sampled_as_was_asked_and_on_each_occasion_anew() -> None:
    settings = SamplingConfig(max_new_tokens=7, temperature=0.6)
    one, again, other = (sampling_of(settings, (3, 4), 0, "step", step) for step in (1, 1, 2))
    assert (one.max_new_tokens, one.temperature, one.stop_ids) == (7, 0.6, (3, 4))
    assert one == again
    assert one.seed != other.seed


def test_a_step_may_ask_more_often_than_there_are_prompts() -> None:
    numbers = prompts_of_step(3, 8, seed=0, step=0)
    assert sorted(numbers.count(number) for number in range(3)) == [2, 3, 3]
