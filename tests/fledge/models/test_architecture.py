"""Our architectures against transformers' own classes on the same random weights."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import ConfigError, DataError, ModelError
from fledge.models.architecture import LanguageModel, build, find_config, is_ours

ARCHITECTURES = ["gpt2", "qwen3", "nanochat"]


def same_weights(hf_content: dict[str, Any], theirs: Any, pad_vocab_to: int = 1) -> LanguageModel:
    config = find_config(hf_content["model_type"]).from_hf(hf_content)
    model = build(config, seed=None, pad_vocab_to=pad_vocab_to)
    with torch.no_grad():
        for parameter in model.parameters():  # what loading forgets to set shows
            parameter.fill_(torch.nan)
    model.load_hf_state(theirs.state_dict(), "test")
    return model.eval()


def some_ids(vocab_size: int, *shape: int) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))


def gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    """By their names and in their shapes in transformers."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        gradient = gradient[: model.config.vocab_size] if model.has_vocabulary_rows(name) else gradient
        found[model.hf_name(name)] = gradient.T if model.is_transposed(name) else gradient
    return found


def test_logits_equal_transformers(hf_content: dict[str, Any], theirs: Any) -> None:
    ids_BT = some_ids(hf_content["vocab_size"], 3, 40)
    with torch.no_grad():
        expected = theirs(ids_BT).logits
        found = same_weights(hf_content, theirs)(ids_BT)
    assert expected.std() > 0.1  # it is not all zeros
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad_vocab_to", [1, 64])
def test_loss_and_gradients_equal_transformers(hf_content: dict[str, Any], theirs: Any, pad_vocab_to: int) -> None:
    vocab_size = hf_content["vocab_size"]
    ids_BT, targets_BT = some_ids(vocab_size, 3, 40), some_ids(vocab_size, 3, 41)[:, 1:].clone()
    targets_BT[0, :7] = -100
    expected = torch.nn.functional.cross_entropy(theirs(ids_BT).logits.flatten(0, 1), targets_BT.flatten())
    expected.backward()
    model = same_weights(hf_content, theirs, pad_vocab_to)
    loss = model.loss(ids_BT, targets_BT)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    found = gradients(model)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found.pop(name), parameter.grad, atol=1e-4, rtol=1e-4, msg=name)
    assert not found


def test_dropout_falls_where_transformers_has_it(hf_content: dict[str, Any], theirs: Any) -> None:
    rates = {"resid_pdrop": 0.1, "embd_pdrop": 0.2, "attn_pdrop": 0.3, "attention_dropout": 0.3}
    content = {**hf_content, **rates}
    for key, rate in rates.items():
        setattr(theirs.config, key, rate)
    for module in theirs.modules():  # transformers reads the rates when it builds the modules
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p, module.resid_dropout.p = 0.3, 0.1
        if type(module).__name__ == "GPT2MLP":
            module.dropout.p = 0.1
        if hasattr(module, "drop"):
            module.drop.p = 0.2
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    ids_BT = some_ids(content["vocab_size"], 2, 16)
    model = same_weights(content, theirs).train()
    with torch.no_grad():
        torch.manual_seed(3)
        expected = theirs.train()(ids_BT).logits
        torch.manual_seed(3)
        found = model(ids_BT)
        assert not torch.allclose(found, model.eval()(ids_BT), atol=1e-2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_config_survives_the_way_through_transformers(hf_content: dict[str, Any]) -> None:
    from transformers import AutoConfig

    config_class = find_config(hf_content["model_type"])
    config = config_class.from_hf(hf_content)
    hf_config = AutoConfig.for_model(**config.to_hf())
    assert config_class.from_hf(hf_config.to_dict()) == config
    assert config_class.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    from transformers import AutoConfig

    config_class = find_config(name)
    assert config_class.from_hf({"model_type": name}) == config_class.from_hf(AutoConfig.for_model(name).to_dict())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "add_cross_attention", True),
        ("qwen3", "attention_bias", True),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "layer_types", ["sliding_attention"] * 32),
        ("qwen3", "hidden_act", "gelu"),
        ("qwen3", "rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("qwen3", "rope_parameters", {"rope_type": "llama3", "rope_theta": 1e6}),
        ("nanochat", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("nanochat", "rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        ("nanochat", "attention_bias", True),
        ("qwen3", "quantization_config", {"bits": 4}),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(name: str, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=key):
        find_config(name).from_hf({"model_type": name, key: value})


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tie", [True, False])
def test_first_loss_is_that_of_guessing(name: str, tie: bool) -> None:
    config = find_config(name).sized(
        vocab_size=1000, context=64, layers=3, width=64, heads=4, dropout=0.0, tie_embeddings=tie
    )
    model = build(config, seed=5, pad_vocab_to=128)
    loss = model.loss(some_ids(1000, 4, 64), some_ids(1000, 4, 65)[:, 1:])
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_first_weights_depend_on_the_seed_only(name: str) -> None:
    config = find_config(name).sized(vocab_size=90, context=16, layers=2, width=32, heads=2)
    state = torch.get_rng_state()
    first, padded, other = (build(config, seed=1), build(config, seed=1, pad_vocab_to=64), build(config, seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    for weights, same, different in zip(
        *(model.to_hf_state().values() for model in (first, padded, other)), strict=True
    ):
        assert torch.equal(weights, same)
        assert weights.unique().numel() < 2 or not torch.equal(weights, different)


def test_gpt2_starts_with_the_spread_of_its_authors() -> None:
    model = build(find_config("gpt2").sized(vocab_size=500, context=64, layers=8, width=128, heads=4))
    state = model.to_hf_state()
    assert state["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["transformer.h.3.mlp.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["transformer.h.3.mlp.c_proj.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert state["transformer.h.3.attn.c_proj.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert not state["transformer.h.3.attn.c_attn.bias"].any()
    assert (state["transformer.h.3.ln_1.weight"] == 1).all()


def test_qwen3_starts_with_the_spread_of_its_authors() -> None:
    model = build(find_config("qwen3").sized(vocab_size=500, context=64, layers=2, width=128, heads=4))
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            assert weight.std().item() == pytest.approx(0.02, rel=0.03), name
        else:
            assert (weight == 1).all(), name
    assert model.config.mlp_width == 3 * 128


def test_nanochat_starts_with_the_spread_of_its_author() -> None:
    config = find_config("nanochat").sized(vocab_size=500, context=64, layers=2, width=128, heads=4, mlp_width=32)
    state = build(config).to_hf_state()
    # sqrt(out / in) / sqrt(in) of 128 -> 32, 1 / sqrt(in) of 128 -> 128; 0 at the end of a branch and in the head.
    assert state["model.layers.0.mlp.fc1.weight"].std().item() == pytest.approx(0.5 / 128**0.5, rel=0.03)
    assert state["model.layers.0.self_attn.q_proj.weight"].std().item() == pytest.approx(1 / 128**0.5, rel=0.03)
    assert state["model.embed_tokens.weight"].std().item() == pytest.approx(1, rel=0.03)
    for name in ("model.layers.0.mlp.fc2.weight", "model.layers.0.self_attn.o_proj.weight", "lm_head.weight"):
        assert not state[name].any()


def test_gpt2_has_one_dropout_for_all_three_places() -> None:
    config = find_config("gpt2").sized(vocab_size=10, context=8, layers=1, width=8, heads=2, dropout=0.2)
    assert (config.dropout, config.embed_dropout, config.attention_dropout) == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("is_tied", [True, False])
def test_padding_rows_are_no_parameters(is_tied: bool) -> None:
    config = find_config("qwen3").sized(vocab_size=50, context=8, layers=1, width=8, heads=2, tie_embeddings=is_tied)
    padded, plain = build(config, pad_vocab_to=64), build(config)
    assert padded.num_parameters() == plain.num_parameters() == sum(p.numel() for p in plain.parameters())
    assert padded.flops_per_token(8) == plain.flops_per_token(8)


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(1, 19), seed=st.integers(0, 99), name=st.sampled_from(ARCHITECTURES))
def test_later_tokens_change_nothing_before_them(cut: int, seed: int, name: str) -> None:
    config = find_config(name).sized(vocab_size=31, context=20, layers=2, width=16, heads=2)
    model = build(config, seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
        ids_BT = some_ids(31, 1, 20)
        changed_BT = ids_BT.clone()
        changed_BT[:, cut:] = (changed_BT[:, cut:] + 1 + seed) % 31
        torch.testing.assert_close(model(ids_BT)[:, :cut], model(changed_BT)[:, :cut], atol=1e-6, rtol=1e-6)


def test_left_padding_changes_nothing(ours: LanguageModel) -> None:
    ids_BT = some_ids(50, 1, 9)
    padded_BT = torch.cat((torch.full((1, 4), 3), ids_BT), 1)
    is_padding_BT = torch.arange(13)[None] < 4
    with torch.no_grad():
        alone = ours(ids_BT)
        padded = ours.logits(ours.hidden(padded_BT, is_padding_BT=is_padding_BT))
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, 4:], alone, atol=1e-5, rtol=1e-5)


def test_loss_without_targets_is_zero_and_has_no_gradient(ours: LanguageModel) -> None:
    ids_BT = some_ids(50, 1, 5)
    loss = ours.loss(ids_BT, torch.full_like(ids_BT, -100))
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in ours.parameters() if parameter.grad is not None)


def test_bfloat16_autocast_stays_near_float32(ours: LanguageModel) -> None:
    ids_BT, targets_BT = some_ids(50, 2, 16), some_ids(50, 2, 17)[:, 1:]
    exact = ours.loss(ids_BT, targets_BT)
    exact.backward()
    exact_gradients = gradients(ours)
    ours.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours.loss(ids_BT, targets_BT)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.05, rtol=0.02)
    for name, gradient in gradients(ours).items():
        similarity = torch.cosine_similarity(gradient.flatten(), exact_gradients[name].flatten(), 0)
        assert similarity > 0.98, name


def test_parameters_and_flops_are_counted_as_published() -> None:
    model = build(find_config("gpt2").from_hf({"model_type": "gpt2"}), seed=None, pad_vocab_to=128)
    assert model.num_parameters() == 124_439_808  # of GPT-2 "124M" in transformers
    # All but token and position embeddings, and then the head, which is the token embeddings again.
    assert model.matmul_parameters() == 124_439_808 - 1024 * 768
    assert model.flops_per_token(1024) == 6 * 123_653_376 + 12 * 12 * 768 * 1024


def test_attention_s_flops_are_those_of_its_heads() -> None:
    # Eight heads of 16 beside a width of 32: 12 x 2 layers x 128 a token that is looked back at.
    shape = find_config("qwen3").sized(vocab_size=50, context=8, layers=2, width=32, heads=2)
    model = build(dataclasses.replace(shape, heads=8, kv_heads=8))
    assert model.flops_per_token(7) - model.flops_per_token(6) == 12 * 2 * 128


def test_every_embedding_is_named_so(ours: LanguageModel) -> None:
    vocabulary = [name for name, _ in ours.named_parameters() if ours.has_vocabulary_rows(name)]
    assert all("embed" in name or "lm_head" in name for name in vocabulary)
    assert all("embed" in name for name, module in ours.named_modules() if isinstance(module, torch.nn.Embedding))


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("gpt2", {"width": 50, "heads": 4}, "width 50 can't be split over 4 heads"),
        ("gpt2", {"width": 48, "heads": 4, "kv_heads": 2}, r"4 heads need 4 kv_heads \(got 2\)"),
        ("qwen3", {"width": 48, "heads": 4, "kv_heads": 3}, "4 heads can't share 3 key-value heads"),
        ("nanochat", {"width": 36, "heads": 4}, "head width 9 must be even"),
        ("qwen3", {"width": 36, "heads": 4}, "head width 9 must be even"),
        ("qwen3", {"width": 48, "heads": 4, "layers": 0}, "layers is 0"),
        ("qwen3", {"width": 48, "heads": 4, "dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_impossible_shapes_are_named(name: str, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_config(name).sized(**{"vocab_size": 10, "context": 8, "layers": 1, **numbers})


def test_more_tokens_than_positions_are_refused(ours: LanguageModel) -> None:
    with pytest.raises(DataError, match="49 tokens do not fit into the model's context of 48"):
        ours(some_ids(50, 1, 49))


def test_only_architectures_are_found_by_name() -> None:
    assert [name for name in ("gpt2", "cache", "llama", "gpt2.evil", "architecture") if is_ours(name)] == ["gpt2"]
    with pytest.raises(ModelError, match="no architecture named 'llama'"):
        find_config("llama")


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_all_blocks_share_one_compiled_graph(ours: LanguageModel) -> None:
    # Past eight of its own, torch would run the other blocks of a deep model uncompiled, without a word.
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in ours.blocks:
        block.compile(backend=backend)
    ours.train()(some_ids(50, 1, 9), some_ids(50, 1, 9)).backward()
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # DeepSpeed's linear, once there
def test_compiles_without_breaks(ours: LanguageModel) -> None:
    ids_BT = some_ids(50, 2, 16)
    with torch.no_grad():
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)(ids_BT)
        torch.testing.assert_close(compiled, ours(ids_BT), atol=1e-5, rtol=1e-5)
