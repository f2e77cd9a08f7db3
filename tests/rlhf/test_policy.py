"""Log-probabilities of answers: those of transformers, those that were sampled with, whatever the padding."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from fledge.errors import ModelError
from fledge.models import generation
from fledge.models.folder import load_model
from fledge.models.generation import Sampling
from rlhf.policy import Answers, Policy

ANSWERS = Answers([[5, 6, 7], [8], [9, 10, 11, 12, 13]], [[20, 21], [22, 23, 24, 25], [26]])


@pytest.fixture(params=["qwen3", "gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    """An untrained model of one of our architectures."""
    return Path(request.getfixturevalue(request.param))


def test_equal_transformers_at_a_temperature(folder: Path) -> None:
    """One row at a time, from all logits."""
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    logprobs, entropies = Policy(load_model(folder), temperature=0.7).logprobs(ANSWERS)
    expected, spread = [], []
    for prompt, answer in zip(ANSWERS.prompts, ANSWERS.answers, strict=True):
        with torch.no_grad():
            logits_TV = theirs(torch.tensor([[*prompt, *answer]])).logits[0] / 0.7
        for place, token in enumerate(answer, len(prompt) - 1):
            distribution = torch.distributions.Categorical(logits=logits_TV[place])
            expected.append(distribution.log_prob(torch.tensor(token)))
            spread.append(distribution.entropy())
    torch.testing.assert_close(logprobs, torch.stack(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, torch.stack(spread), atol=1e-5, rtol=1e-5)


def test_the_sampler_drew_with_the_same_probabilities(folder: Path) -> None:
    """So the first ratio of a step is 1: ids in, ids out."""
    model = load_model(folder)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, stop_ids=(3,), seed=1)
    written = generation.generate(model, ANSWERS.prompts, sampling)
    found = Policy(model, 0.7).scored(Answers(ANSWERS.prompts, [completion.ids for completion in written]))
    for logprobs, completion in zip(found, written, strict=True):
        torch.testing.assert_close(logprobs, torch.tensor(completion.logprobs), atol=1e-5, rtol=1e-5)


def test_other_rows_and_batches_change_nothing(folder: Path) -> None:
    policy = Policy(load_model(folder))
    together = policy.scored(ANSWERS)
    for row in range(len(ANSWERS)):
        (alone,) = policy.scored(ANSWERS.rows([row]))
        torch.testing.assert_close(together[row], alone, atol=1e-6, rtol=1e-6)


def test_gradients_are_those_of_all_logits(folder: Path) -> None:
    model = load_model(folder)
    logprobs, entropies = Policy(model).logprobs(ANSWERS)
    (logprobs.sum() + 0.1 * entropies.sum()).backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros(())
    for prompt, answer in zip(ANSWERS.prompts, ANSWERS.answers, strict=True):
        whole = model(torch.tensor([[*prompt, *answer]]))[0].log_softmax(-1)
        for place, token in enumerate(answer, len(prompt) - 1):
            total = total + whole[place, token] - 0.1 * (whole[place].exp() * whole[place]).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )


def test_takes_any_causal_model_of_transformers() -> None:
    model = llama()
    logprobs, _ = Policy(model).logprobs(ANSWERS.rows([1]))
    whole_TV = model(torch.tensor([[8, 22, 23, 24, 25]])).logits[0].log_softmax(-1)
    expected = torch.stack([whole_TV[place, token] for place, token in enumerate([22, 23, 24, 25])])
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)


def test_takes_a_model_that_caps_its_logits() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": 0.5}
    model = Gemma2ForCausalLM(Gemma2Config(**shape, **heads))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)
        expected = model.eval()(torch.tensor([[5, 6, 7]])).logits[0, 1:].log_softmax(-1)
    found = Policy(model).scored(Answers([[5, 6]], [[7, 8]]))[0]
    torch.testing.assert_close(found, expected[[0, 1], [7, 8]], atol=1e-5, rtol=1e-5)


def test_refuses_a_model_whose_logits_are_no_plain_product() -> None:
    model = llama()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(ModelError, match="LlamaForCausalLM: its logits are not the product"):
        Policy(model)
