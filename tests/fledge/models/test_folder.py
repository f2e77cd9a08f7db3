"""Model folders: ours read by transformers and theirs by us, and every way in which one can be wrong."""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fledge.endings import declared_ids
from fledge.errors import ModelError
from fledge.models import folder as model_folder
from fledge.models.architecture import LanguageModel, build, find_config
from fledge.models.folder import find_model, load_model, save_model

if TYPE_CHECKING:
    from conftest import Hub

IDS = torch.arange(20)[None] * 7 % 50


def change_config(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def change_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    state = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in state.items() if v is not None}, folder / "model.safetensors")


def greedy(model: Any, length: int = 12) -> list[int]:
    ids = IDS[:, :5]
    with torch.no_grad():
        for _ in range(length):
            output = model(ids)
            logits = output if isinstance(output, torch.Tensor) else output.logits
            ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), 1)
    return ids[0].tolist()


@pytest.fixture
def saved(ours: LanguageModel, tmp_path: Path) -> Path:
    save_model(ours, tmp_path)
    return tmp_path


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    config = find_config("gpt2").sized(vocab_size=50, context=24, layers=2, width=16, heads=2)
    save_model(build(config), tmp_path)
    return tmp_path


def test_transformers_loads_ours(ours: LanguageModel, saved: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == ours.config.hf_class
    assert greedy(theirs) == greedy(ours)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS), atol=1e-5, rtol=1e-5)


def test_we_load_what_transformers_saves(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    model = load_model(tmp_path)
    assert isinstance(model, LanguageModel)
    assert greedy(model) == greedy(theirs)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-5)


def test_weights_survive_saving_bit_for_bit(ours: LanguageModel, saved: Path) -> None:
    loaded = load_model(saved)
    assert loaded.config == ours.config
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


def test_equal_weights_give_equal_bytes(ours: LanguageModel, saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    save_model(load_model(saved), again)
    names = {file.name for file in saved.iterdir() if file.is_file()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert len({(saved / name).stat().st_mode for name in names}) == 1
    for name in names:
        assert (again / name).read_bytes() == (saved / name).read_bytes(), name


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "nanochat"])
@pytest.mark.parametrize("tie", [True, False])
def test_padding_rows_are_cut_on_save(name: str, tie: bool, tmp_path: Path) -> None:
    config = find_config(name).sized(vocab_size=50, context=24, layers=1, width=16, heads=2, tie_embeddings=tie)
    padded = build(config, seed=3, pad_vocab_to=64)
    assert len(padded.token_embed.weight) == 64
    save_model(padded, tmp_path)
    loaded = load_model(tmp_path)
    assert len(loaded.token_embed.weight) == 50
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tie
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS), padded(IDS), atol=1e-6, rtol=1e-6)


def test_bfloat16_stays_so_if_asked(ours: LanguageModel, tmp_path: Path) -> None:
    save_model(ours.to(torch.bfloat16), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(tmp_path, dtype=None).token_embed.weight.dtype == torch.bfloat16
    assert load_model(tmp_path).token_embed.weight.dtype == torch.float32


def test_old_gpt2_files_without_prefix_and_with_masks_load(gpt2_folder: Path) -> None:
    expected = load_model(gpt2_folder)(IDS)
    state = load_file(gpt2_folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    old["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, gpt2_folder / "model.safetensors")
    assert torch.equal(load_model(gpt2_folder)(IDS), expected)


def test_other_types_are_left_to_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert type(model) is LlamaForCausalLM
    assert greedy(model) == greedy(theirs)


@pytest.mark.parametrize("tensor", [None, torch.zeros(3, 16)], ids=["missing", "another shape"])
def test_transformers_draws_no_weights_for_those_that_are_not_there(
    gpt2_folder: Path, tensor: torch.Tensor | None
) -> None:
    change_weights(gpt2_folder, {"transformer.h.0.mlp.c_fc.weight": tensor})
    wrong = r"weights are missing or of another shape: transformer\.h\.0\.mlp\.c_fc\.weight$"
    with pytest.raises(ModelError, match=wrong):
        model_folder.load_by_transformers(gpt2_folder)


def test_a_run_folder_means_its_model(gpt2_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "base"
    shutil.copytree(gpt2_folder, run / "model", ignore=shutil.ignore_patterns("base"))
    assert find_model(run) == run / "model"
    assert find_model(run / "model") == run / "model"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("seed-0", "seed-1"), r"a run with several seeds; give one of .*/seed-0, .*/seed-1$"),
        (("base", "chat"), r"a folder of runs; give one of .*/base, .*/chat$"),
    ],
)
def test_the_runs_in_a_folder_are_listed(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").touch()
    (tmp_path / "shards").mkdir()
    with pytest.raises(ModelError, match=message):
        find_model(tmp_path)


def test_a_hub_name_is_fetched_and_a_mistyped_path_is_not(gpt2_folder: Path, hub_server: "Hub") -> None:
    hub_server.put("gpt2", gpt2_folder)
    hub_server.put("owner/run", {"model/config.json": b"{}"})
    assert torch.equal(load_model("gpt2")(IDS), load_model(gpt2_folder)(IDS))
    assert find_model("owner/run").parts[-1] == "model"
    asked = len(hub_server.asked)
    for mistyped in ("runs/base", "./owner/run", "/no/such", "bases"):
        with pytest.raises(ModelError, match="no such folder"):
            find_model(mistyped)
    assert len(hub_server.asked) == asked


def test_weights_for_which_transformers_has_no_place_are_named(
    gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(gpt2_folder, {"transformer.h.0.gate.weight": torch.ones(2), "value.weight": torch.ones(2)})
    model_folder.load_by_transformers(gpt2_folder)
    said = "GPT2LMHeadModel has no place for its weights transformer.h.0.gate.weight, value.weight: they are left out"
    assert said in capsys.readouterr().err
    model_folder.auto_model("SequenceClassification", gpt2_folder, None, "score")
    assert "no place for its weights transformer.h.0.gate.weight: they" in capsys.readouterr().err


def test_a_model_that_brings_its_own_code_is_another_where_its_weights_are(
    gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_config(gpt2_folder, auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    model_folder.load_by_transformers(gpt2_folder)
    never = r"the Python code it brings (auto_map) is never run"
    assert f"loaded as transformers' own GPT2LMHeadModel; {never}" in capsys.readouterr().err
    change_weights(gpt2_folder, {"transformer.h.0.gate.weight": torch.ones(2)})
    with pytest.raises(ModelError, match=rf"no place for .*gate.weight; {re.escape(never)}$"):
        model_folder.load_by_transformers(gpt2_folder)
    change_config(gpt2_folder, model_type="own")
    with pytest.raises(ModelError, match=rf"transformers can't load it; {re.escape(never)}$"):
        model_folder.load_by_transformers(gpt2_folder)


def test_a_hub_model_of_pickles_is_told_so_and_none_is_fetched(hub_server: "Hub") -> None:
    hub_server.put("owner/old", {"config.json": b'{"model_type": "gpt2"}', "pytorch_model.bin": b"pickle"})
    with pytest.raises(ModelError, match=r"no weights there .*; pickles \(\*.bin\) can run code and are not read"):
        load_model("owner/old")
    assert hub_server.downloads("owner/old") == ["config.json"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no model there"),
        ({"adapter_config.json": "{}"}, "adapters without their model; merge them"),
        (
            {"config.json": "{}", "adapter_config.json": "{}"},
            r"adapters beside a whole model; remove adapter_\* or merge",
        ),
        ({"hparams.json": "{}", "checkpoint": ""}, "TensorFlow checkpoint of GPT-2"),
        ({"config.json": "{"}, "config.json: can't be read"),
        ({"config.json": "{}"}, "no model_type"),
        ({"config.json": '{"model_type": "gpt2"}'}, "no weights there"),
        ({"config.json": '{"model_type": "gpt2"}', "pytorch_model.bin": ""}, "pickle"),
        ({"config.json": '{"model_type": "llama"}', "pytorch_model.bin": ""}, "pickle"),
        ({"config.json": '{"model_type": "gpt2", "n_head": 7}', "model.safetensors": ""}, "gpt2: 7 heads need"),
        ({"config.json": '{"model_type": "gpt2"}', "model.safetensors": "x"}, "model.safetensors: damaged"),
        ({"config.json": '{"model_type": "gpt2"}', "model.safetensors.index.json": "{}"}, "can't be read"),
        (
            {
                "config.json": '{"model_type": "gpt2"}',
                "model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}',
            },
            "model-1.safetensors is missing",
        ),
        *(
            (
                {
                    "config.json": f'{{"model_type": "{kind}"}}',
                    "model.safetensors.index.json": f'{{"weight_map": {{"a": {name}}}}}',
                },
                rf"index\.json: can't be read \({problem}",
            )
            for kind in ("gpt2", "llama")
            for name, problem in (('"../x"', "it names files of other folders"), ('"/dev/zero"', "it names"), ("5", ""))
        ),
        ({"config.json": "[" * 100_000}, "config.json: can't be read"),
        (
            {"config.json": '{"model_type": "gpt2", "architectures": "GPT2"}'},
            "architectures is 'GPT2', must be a list of",
        ),
        ({"config.json": '{"model_type": "gpt2", "architectures": [5]}'}, r"architectures is \[5\], must be a list of"),
        ({"config.json": '{"model_type": "gpt2", "n_embd": "2"}'}, "config.json: its numbers make no model"),
        ({"config.json": '{"model_type": "gpt2", "n_layer": 1.5}'}, "layers is 1.5, must be of type int"),
        ({"config.json": '{"model_type": "gpt2", "n_layer": "2"}'}, "layers is '2', must be of type int"),
        ({"config.json": '{"model_type": "gpt2", "layer_norm_epsilon": "x"}'}, "epsilon is 'x', must be of type float"),
        (
            {"config.json": '{"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]}'},
            "holds a GPT2ForSequenceClassification, not a language model",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("settings", [{"n_layer": 10**9}, {"vocab_size": 10**30}, {"n_embd": 10**6}])
def test_a_config_of_a_far_larger_model_is_refused_at_once(gpt2_folder: Path, settings: dict[str, int]) -> None:
    change_config(gpt2_folder, **settings)
    with pytest.raises(ModelError, match=r"config.json wants \d+ weights or more, and there are \d+; copy both again"):
        load_model(gpt2_folder)


@pytest.mark.parametrize("content", ["null", "[1]", '{"eos_token_id": [[1]]}', '{"eos_token_id": "a"}', "[" * 100_000])
def test_a_damaged_generation_config_names_no_ends(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    assert declared_ids(tmp_path) == []


def test_a_cut_off_weights_file_is_an_error(gpt2_folder: Path) -> None:
    weights = gpt2_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match="damaged"):
        load_model(gpt2_folder)


def test_tensors_that_do_not_match_are_named(gpt2_folder: Path) -> None:
    change_weights(
        gpt2_folder,
        {
            "transformer.h.0.ln_1.bias": None,
            "transformer.extra": torch.ones(2),
            "transformer.wpe.weight": torch.ones(3, 16),
        },
    )
    with pytest.raises(ModelError) as error:
        load_model(gpt2_folder)
    for part in (
        "missing: transformer.h.0.ln_1.bias",
        "unexpected: transformer.extra",
        "wrong shape: transformer.wpe.weight is [3, 16]",
    ):
        assert part in str(error.value)


def test_a_tied_model_with_another_head_is_refused(gpt2_folder: Path) -> None:
    state = load_file(gpt2_folder / "model.safetensors")
    change_weights(gpt2_folder, {"lm_head.weight": state["transformer.wte.weight"].clone()})
    load_model(gpt2_folder)
    change_weights(gpt2_folder, {"lm_head.weight": state["transformer.wte.weight"] + 1})
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load_model(gpt2_folder)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"activation_function": "gelu"}),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_what_ours_lacks_is_left_to_transformers_aloud(
    kind: str, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    config = find_config(kind).sized(vocab_size=50, context=24, layers=2, width=16, heads=2)
    save_model(build(config), tmp_path)
    change_config(tmp_path, **settings)
    assert greedy(load_model(tmp_path)) == greedy(AutoModelForCausalLM.from_pretrained(tmp_path))
    (key,) = settings
    told = capsys.readouterr().err
    assert f"config.json: {key} = " in told
    assert "transformers' own class is used" in told


@pytest.mark.parametrize("settings", [{"activation_function": "none"}, {"quantization_config": {"bits": 4}}])
def test_what_transformers_lacks_too_is_an_error_that_names_the_folder(
    settings: dict[str, Any], gpt2_folder: Path
) -> None:
    change_config(gpt2_folder, **settings)
    with pytest.raises(ModelError, match=f"{gpt2_folder}: transformers can't load it"):
        load_model(gpt2_folder)
