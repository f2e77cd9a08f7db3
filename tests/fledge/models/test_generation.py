"""Generation against slow recomputation and transformers; the same text alone, in a batch, and in pieces."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import ConfigError, DataError, ModelError
from fledge.models import generation, graphed
from fledge.models.architecture import LanguageModel, build, find_config
from fledge.models.decoding import decoder
from fledge.models.generation import Completion, Sampling, generate, stream
from fledge.models.graphed import FixedStep, GraphedStep
from fledge.models.sampling import choose, row_randomness
from fledge.tokens import TextTokenizer

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [3, 1, 4, 1, 5], [8, 8]]


def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """All logits of one row, from a whole pass without cache."""
    with torch.no_grad():
        output = model(torch.tensor([list(ids)]))
    return (output if isinstance(output, torch.Tensor) else output.logits)[0]


def close(found: Completion, expected: Completion) -> None:
    assert found.ids == expected.ids
    assert (found.finish, found.stop_string) == (expected.finish, expected.stop_string)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_greedy_text_and_logprobs_equal_those_of_whole_passes(ours: LanguageModel) -> None:
    found = generate(ours, PROMPTS, Sampling(max_new_tokens=12, temperature=0))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids, logprobs = list(prompt), []
        for _ in range(12):
            row = logits_of(ours, ids)[-1].log_softmax(-1)
            ids.append(int(row.argmax()))
            logprobs.append(float(row.max()))
        close(completion, Completion(ids[len(prompt) :], logprobs, "length"))


def test_greedy_text_of_transformers_models_equals_their_own_generate(theirs: Any) -> None:
    found = generate(theirs, PROMPTS, Sampling(max_new_tokens=12, temperature=0))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.ids == expected[0, len(prompt) :].tolist()


def test_transformers_model_and_ours_give_the_same(hf_content: dict[str, Any], theirs: Any) -> None:
    model = build(find_config(hf_content["model_type"]).from_hf(hf_content), seed=None)
    model.load_hf_state(theirs.state_dict(), "test")
    sampling = Sampling(max_new_tokens=10, top_p=0.9, stop_ids=(1, 2, 3), seed=4)
    by_theirs = generate(theirs, PROMPTS, sampling)
    for found, expected in zip(generate(model, PROMPTS, sampling), by_theirs, strict=True):
        close(found, expected)


SETTINGS = [
    Sampling(max_new_tokens=16, seed=1),
    Sampling(max_new_tokens=16, temperature=0.7, top_k=7, seed=2),
    Sampling(max_new_tokens=16, temperature=1.5, top_p=0.8, seed=3),
    Sampling(max_new_tokens=16, min_p=0.2, seed=4),
    Sampling(max_new_tokens=16, temperature=0.9, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3, seed=5),
]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_logprobs_are_those_of_the_distribution_drawn_from(ours: LanguageModel, sampling: Sampling) -> None:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
            TopKLogitsWarper(sampling.top_k or 10_000),
            TopPLogitsWarper(sampling.top_p),
            MinPLogitsWarper(sampling.min_p),
        ]
    )
    for prompt, completion in zip(PROMPTS, generate(ours, PROMPTS, sampling), strict=True):
        ids = [*prompt, *completion.ids]
        logits = logits_of(ours, ids)
        expected = []
        for place in range(len(prompt), len(ids)):
            scores = processors(torch.tensor([ids[:place]]), logits[place - 1][None].clone())
            expected.append(float(scores.log_softmax(-1)[0, ids[place]]))
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    logits=st.lists(st.floats(-5, 5), min_size=3, max_size=12),
    temperature=st.floats(0.3, 2),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.1, 1),
)
def test_tokens_are_drawn_as_often_as_they_are_likely(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    # With 2,000 evenly spread "random" numbers a token comes up 2,000 p times, give or take 1.
    num = 2000
    uniform = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    rows = torch.tensor([logits]).repeat(num, 1)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    chosen = choose(rows, sampling, uniform, None)
    total = 0.0
    for token in chosen.ids.unique():
        drawn = chosen.ids == token
        probability = float(chosen.logprobs[drawn][0].exp())
        assert abs(int(drawn.sum()) - num * probability) <= 1.001
        total += probability
    assert total <= 1 + 1e-5


def test_seen_tokens_become_less_likely_whatever_the_sign_of_their_logits() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, is_seen = torch.tensor([[2.0, -1.0, -1.2, 0.5]]), torch.tensor([[True, True, False, False]])
    expected = RepetitionPenaltyLogitsProcessor(2.0)(torch.tensor([[0, 1]]), logits.clone()).log_softmax(-1)
    for token, place in enumerate((0.3, 0.58, 0.62, 0.9)):  # within each token's share of [0, 1)
        uniform = torch.tensor([place], dtype=torch.float64)
        found = choose(logits.clone(), Sampling(repetition_penalty=2.0), uniform, is_seen)
        assert found.ids.tolist() == [token]
        assert float(found.logprobs) == pytest.approx(float(expected[0, token]))


def test_greedy_logprobs_are_the_models_own_whatever_the_penalty() -> None:
    logits, uniform = torch.tensor([[2.0, 1.5]]), torch.zeros(1, dtype=torch.float64)
    is_seen = torch.tensor([[True, False]])
    found = choose(logits.clone(), Sampling(temperature=0, repetition_penalty=2.0), uniform, is_seen)
    assert found.ids.tolist() == [1]
    assert float(found.logprobs) == pytest.approx(float(logits.log_softmax(-1)[0, 1]))


def test_what_is_impossible_is_never_drawn_and_the_likeliest_always_may_be() -> None:
    logits, uniform = torch.tensor([[-torch.inf, 1.0, 2.0]]), torch.zeros(1, dtype=torch.float64)
    assert choose(logits.clone(), Sampling(), uniform, None).ids.tolist() == [1]
    assert choose(logits.clone(), Sampling(min_p=1), uniform, None).ids.tolist() == [2]


@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(max_new_tokens=16, temperature=0)])
def test_a_row_is_the_same_alone_and_in_a_batch(ours: LanguageModel, sampling: Sampling) -> None:
    # What three of the rows say is made to end them, so that rows leave the batch at different steps.
    free = generate(ours, PROMPTS, sampling)
    stops = (free[0].ids[9], free[1].ids[2], free[2].ids[6])
    sampling = generation.dataclasses.replace(sampling, stop_ids=stops)
    together = generate(ours, PROMPTS, sampling)
    # (Greedy, a small random model may say one token for ever.)
    assert not sampling.temperature or len({len(completion.ids) for completion in together}) > 1
    for row in (0, 1, 2, 4):
        close(together[row], generate(ours, [PROMPTS[row]], sampling)[0])
    backwards = generate(ours, PROMPTS[::-1][:2], sampling)
    close(backwards[0], together[4])


def test_a_step_of_fixed_shapes_equals_one_of_growing_shapes(ours: LanguageModel) -> None:
    # What a CUDA graph records, run here as it is: with padding, and with fewer rows than it was made for.
    texts = decoder(ours, PROMPTS, room=20)
    with torch.inference_mode():
        texts.start()
        fixed = FixedStep(ours, texts._cache)  # type: ignore[attr-defined]
        for ids in ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13]):
            if len(ids) == 3:
                texts.keep([4, 1, 3])
            fixed.take(torch.tensor(ids))
            found = fixed.run()[: len(ids)].clone()
            torch.testing.assert_close(found, texts.step(torch.tensor(ids)), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "nanochat"])
@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 2, 3]] * 9])
def test_a_cuda_graph_writes_what_eager_steps_write(
    architecture: str, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = find_config(architecture).sized(vocab_size=40, context=96, layers=2, width=64, heads=4)
    model = build(shape, seed=0).cuda()
    sampling = Sampling(max_new_tokens=80, stop_ids=(7, 8))  # rows end one after the other
    recordings: list[GraphedStep] = []
    made = graphed.GraphedStep.__init__

    def counted(self: GraphedStep, *arguments: Any) -> None:
        made(self, *arguments)
        recordings.append(self)

    monkeypatch.setattr(graphed.GraphedStep, "__init__", counted)
    found = generate(model, prompts, sampling)
    assert recordings
    monkeypatch.setattr(graphed, "_failed", True)
    for one, other in zip(found, generate(model, prompts, sampling), strict=True):
        close(one, other)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_the_vocabulary_without_a_token_are_never_chosen(temperature: float, tokenizer: TextTokenizer) -> None:
    padded = build(find_config("gpt2").sized(vocab_size=300, context=24, layers=1, width=16, heads=2))
    with torch.no_grad():
        padded.head_weight[257:] *= 50  # the largest logits are mostly there
    sampling = Sampling(max_new_tokens=12, temperature=temperature)
    free = generate(padded, PROMPTS, sampling)
    assert max(max(completion.ids) for completion in free) >= 257
    found = generate(padded, PROMPTS, sampling, tokenizer.token_bytes())
    assert max(max(completion.ids) for completion in found) < 257
    assert all(math.isfinite(logprob) for completion in found for logprob in completion.logprobs)


def test_models_without_a_cache_of_keys_are_refused_by_name() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="MambaForCausalLM: has no cache of keys and values"):
        generate(model, PROMPTS, Sampling())


def test_a_mixture_of_experts_that_learns_to_balance_them_writes() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, output_router_logits=True,
    )  # fmt: skip
    found = generate(MixtralForCausalLM(config), PROMPTS, Sampling(max_new_tokens=3))
    assert [len(completion.ids) for completion in found] == [3] * len(PROMPTS)


@pytest.mark.parametrize("damage", [math.nan, math.inf])
@pytest.mark.parametrize("settings_", [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}])
def test_damaged_weights_are_told_and_write_nothing(
    ours: LanguageModel, settings_: dict[str, Any], damage: float
) -> None:
    with torch.no_grad():
        ours.token_embed.weight[7] = damage  # only known once this token is read
    with pytest.raises(ModelError, match="gives NaN or infinity: its weights are damaged; copy it"):
        generate(ours, [[3, 7]], Sampling(max_new_tokens=4, **settings_))


def test_copies_of_a_prompt_differ_and_a_seed_repeats_them(ours: LanguageModel) -> None:
    prompts = [[5, 6, 7]] * 4
    first = generate(ours, prompts, Sampling(max_new_tokens=12, seed=0))
    assert len({tuple(completion.ids) for completion in first}) == 4
    assert generate(ours, prompts, Sampling(max_new_tokens=12, seed=0)) == first
    assert generate(ours, prompts, Sampling(max_new_tokens=12, seed=1)) != first


def test_streams_of_random_numbers_are_unrelated() -> None:
    uniform = row_randomness([[n] for n in range(50)] + [[0]] * 50, Sampling(max_new_tokens=200))
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    assert float((torch.corrcoef(uniform) - torch.eye(100)).abs().max()) < 0.35  # 4.9 sigma of 1 / sqrt(200)


def test_generating_leaves_the_model_and_the_global_randomness_as_they_were(ours: LanguageModel) -> None:
    ours.train()
    ours.config = generation.dataclasses.replace(ours.config, dropout=0.5)
    state = torch.get_rng_state()
    weights = [parameter.clone() for parameter in ours.parameters()]
    generate(ours, PROMPTS, Sampling(max_new_tokens=4))
    assert ours.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, ours.parameters(), strict=True))
    ours.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).backward()  # no inference tensors left


def test_a_row_ends_with_its_stop_id(ours: LanguageModel) -> None:
    free = generate(ours, PROMPTS[:1], Sampling(max_new_tokens=12, temperature=0))[0]
    stop = free.ids[4]
    stopped = generate(ours, PROMPTS[:1], Sampling(max_new_tokens=12, temperature=0, stop_ids=(stop, 100)))[0]
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert stopped.finish == "stop"
    assert free.finish == "length"


def test_streamed_steps_add_up_to_the_completions(ours: LanguageModel) -> None:
    sampling = Sampling(max_new_tokens=8, stop_ids=tuple(range(20)))
    ids: list[list[int]] = [[] for _ in PROMPTS]
    for step in stream(ours, PROMPTS, sampling):
        assert len(step.rows) == len(step.ids) == len(step.finishes)
        for row, token in zip(step.rows, step.ids, strict=True):
            ids[row].append(token)
    assert ids == [completion.ids for completion in generate(ours, PROMPTS, sampling)]


def test_a_batch_that_does_not_fit_is_refused_with_both_numbers(ours: LanguageModel) -> None:
    with pytest.raises(DataError, match=r"11 prompt tokens and 38 new ones .* context of 48"):
        generate(ours, PROMPTS, Sampling(max_new_tokens=38))
    assert len(generate(ours, PROMPTS, Sampling(max_new_tokens=37))[2].ids) == 37
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generate(ours, [[1], []], Sampling())
    assert generate(ours, [], Sampling()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, must be 0, or at least 1e-06"),
        ({"temperature": 1e-40}, "temperature is 1e-40, must be 0, or at least 1e-06"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty is 1e-45, must be from 0.001 to 1000"),
        ({"top_p": 0.0}, r"top_p is 0.0, must be in \(0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop_strings": ("",)}, "stop_strings is"),
    ],
)
def test_impossible_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**values)
