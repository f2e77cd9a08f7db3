"""Hugging Face model folders, read and written without transformers; found by path, run or hub name."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fledge import atomic, console, hub
from fledge.errors import ConfigError, ModelError, first_line
from fledge.models.architecture import LanguageModel, ModelConfig, build, find_config, is_ours
from fledge.models.linear import quicken

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTERS = "adapter_config.json"  # PEFT's

_LANGUAGE_MODEL = re.compile(r"(ForCausalLM|LMHeadModel|GPT2Model|Qwen3Model|NanoChatModel)$")


def find_model(path: str | Path) -> Path:
    """The model folder that a path means: itself, `model/` in a run folder, or a hub name, which is fetched.

    Raises:
        ModelError: there is no model, or more than one; says what there is instead.
    """
    folder = hub.folder(path, "model", "run or model folder")
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            if (candidate / ADAPTERS).is_file():  # transformers would put them on unasked, we would not
                raise ModelError(
                    f"{candidate}: adapters beside a whole model; remove adapter_* or merge them with peft"
                )
            return candidate
    runs = sorted(config.parent.parent for config in folder.glob(f"*/model/{CONFIG}"))
    if runs:
        what = "run with several seeds" if runs[0].name.startswith("seed-") else "folder of runs"
        raise ModelError(f"{path}: a {what}; give one of {', '.join(run.as_posix() for run in runs[:9])}")
    if (folder / "hparams.json").is_file():
        raise ModelError(
            f"{path}: OpenAI's TensorFlow checkpoint of GPT-2, which can't be read; "
            "use the same weights as a Hugging Face folder (hub name gpt2)"
        )
    if (folder / ADAPTERS).is_file():
        raise ModelError(f"{path}: adapters without their model; merge them into it with peft, and save that")
    raise ModelError(f"{path}: no model there: no {CONFIG} in it or in its model/")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        ModelError: it can't be read or names no model_type.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}/{CONFIG}: can't be read ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelError(f"{folder}/{CONFIG}: has no model_type, so it is no Hugging Face model")
    kinds = content.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ModelError(f"{folder}/{CONFIG}: architectures is {kinds!r}, must be a list of names")
    return content


def load_model(path: str | Path, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu") -> Any:
    """The language model in a folder, in evaluation mode.

    Args:
        path: as `find_model` takes it.
        dtype: of the weights; None is as in the file.
    Returns:
        A `LanguageModel` for gpt2, qwen3 and nanochat, transformers' own class where `own_config` is None.
    Raises:
        ModelError: no model, a damaged one, or a kind that is not implemented.
    """
    folder = find_model(path)
    content = _language_model(folder)
    config = own_config(folder, content)
    if config is None:
        return load_by_transformers(folder, dtype, device)
    state = read_tensors(folder, config)
    model = build(config, seed=None)
    model.to(dtype or next((tensor.dtype for tensor in state.values()), torch.float32))
    model.load_hf_state(state, str(folder))
    return model.to(device).eval()


def own_config(folder: Path, content: dict[str, Any]) -> ModelConfig | None:
    """Our config for a folder's config.json; None where it is of another type, or, aloud, asks for what ours lacks.

    Raises:
        ModelError: its numbers make no model.
    """
    if not is_ours(content["model_type"]):
        return None
    try:
        return find_config(content["model_type"]).from_hf(content)
    except ModelError as error:
        console.note(f"{error}: transformers' own class is used")
        return None
    except (ConfigError, ArithmeticError, TypeError) as error:
        raise ModelError(f"{folder}/{CONFIG}: its numbers make no model ({error})") from None


def _language_model(folder: Path) -> dict[str, Any]:
    content = read_config(folder)
    kinds = content.get("architectures") or []
    if kinds and not any(_LANGUAGE_MODEL.search(kind) for kind in kinds):
        raise ModelError(f"{folder}: holds a {', '.join(kinds)}, not a language model")
    return content


def read_tensors(folder: Path, config: ModelConfig | None = None) -> dict[str, Tensor]:
    """All tensors of a model folder by name, whether in one file or in several.

    Raises:
        ModelError: there are none, a file is missing or damaged, or they are but a small part of the config's model.
    """
    state: dict[str, Tensor] = {}
    for name in weight_files(folder):
        try:
            with safe_open(folder / name, framework="pt") as file:
                state.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118, no mapping
        except FileNotFoundError:
            raise ModelError(f"{folder}: {name} is missing, but {INDEX} lists it") from None
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{folder}/{name}: damaged ({error}); copy it again") from None
    least, found = config.least_weights() if config else 0, sum(tensor.numel() for tensor in state.values())
    if least > 10 * found:  # else loading tells each tensor; such a model would be built for ever first
        raise ModelError(f"{folder}: {CONFIG} wants {least} weights or more, and there are {found}; copy both again")
    return state


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold a folder's weights.

    Raises:
        ModelError: there are none, or their index can't be read or names files elsewhere.
    """
    if (folder / INDEX).is_file():
        try:
            placed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(placed.values()))
            if any(Path(name).name != name for name in files):
                raise ValueError("it names files of other folders")
            return files
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{folder}/{INDEX}: can't be read ({error})") from None
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    raise ModelError(
        f"{folder}: no weights there (no {WEIGHTS}); pickles (*.bin) can run code and are not read: "
        "save the model again with safetensors"
    )


def save_model(model: LanguageModel, folder: str | Path) -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder.

    Equal weights give equal bytes: no time, path or host is in them. transformers loads the result.
    """
    folder = Path(folder)
    state = model.to_hf_state()
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    ids = {name: value for name, value in model.config.hf_ids().items() if value is not None}
    for name, content in ((CONFIG, model.config.to_hf() | {"dtype": dtype}), ("generation_config.json", ids)):
        atomic.write_file(folder / name, json.dumps(content, indent=2) + "\n")
    weights = folder / WEIGHTS
    partial = atomic.partial_path(weights)
    with atomic.disk_errors(weights):
        save_file(state, partial, metadata={"format": "pt"})
        partial.chmod((folder / CONFIG).stat().st_mode)  # the library lets nobody else read it
        atomic.sync_file(partial)
        partial.replace(weights)


def load_by_transformers(
    folder: Path, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
) -> Any:
    """transformers' own class with the weights in a folder, whatever the type; arguments and errors as `load_model`."""
    _language_model(folder)
    return quicken(auto_model("CausalLM", folder, dtype).to(device).eval())


def auto_model(task: str, folder: Path, dtype: torch.dtype | None, new_weights: str = "$^", **settings: Any) -> Any:
    """What transformers' `AutoModelFor<task>` loads from a folder: from safetensors alone, and with no code of its.

    Args:
        new_weights: a pattern of the names of weights that need not be there, and are drawn.
    Raises:
        ModelError: transformers can't load it, or not without its code, or weights are missing or of another shape.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", hub.OFFLINE)
    import transformers

    transformers.logging.set_verbosity_error()  # it reports each new weight
    transformers.logging.disable_progress_bar()
    weight_files(folder)  # transformers would follow an index elsewhere
    AutoModel = getattr(transformers, f"AutoModelFor{task}")
    needs_code = "; the Python code it brings (auto_map) is never run" if "auto_map" in read_config(folder) else ""
    try:
        model, found = AutoModel.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, RuntimeError, LookupError, ImportError, SafetensorError) as error:
        reason = "" if needs_code and "custom code" in str(error) else f" ({first_line(error)})"
        raise ModelError(f"{folder}: transformers can't load it{reason}{needs_code}") from None
    unset = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if wrong := sorted(name for name in unset if not re.search(new_weights, name)):
        raise ModelError(f"{folder}: weights are missing or of another shape: {', '.join(wrong[:5])}{needs_code}")
    # A classifier's head takes the place of the language model's.
    body = "" if task == "CausalLM" else f"{model.base_model_prefix}."
    if unknown := sorted(name for name in found["unexpected_keys"] if name.startswith(body)):
        said = f"{folder}: {type(model).__name__} has no place for its weights {', '.join(unknown[:5])}"
        if needs_code:
            raise ModelError(said + needs_code)
        console.warn(f"{said}: they are left out")
    elif needs_code:
        console.note(f"{folder}: loaded as transformers' own {type(model).__name__}{needs_code}")
    return model
