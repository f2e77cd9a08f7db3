"""Nothing that can run code is loaded: no pickle but the run's own state, no code from a model's folder."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["fledge", "tokenizer", "eval", "pretrain", "finetune", "rlhf"]
CALLS = [
    (file.relative_to(ROOT).as_posix(), node)
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)
]


def calls_of(name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """File and plain keyword arguments of each call of a function or method."""
    for file, node in CALLS:
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            values = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant) and k.arg}
            yield f"{file}:{node.lineno} {ast.unparse(node.func)}", values


def test_torch_loads_weights_only_and_only_checkpoints() -> None:
    found = [(where.split(":")[0], values) for where, values in calls_of("load") if where.endswith(" torch.load")]
    assert [file for file, _ in found] == ["fledge/checkpoints.py"]
    assert all(values["weights_only"] is True for _, values in found)
    saved = [where.split(":")[0] for where, _ in calls_of("save") if where.endswith(" torch.save")]
    assert saved == ["fledge/checkpoints.py"]


def test_models_of_transformers_are_loaded_from_safetensors_without_their_code() -> None:
    for where, values in calls_of("from_pretrained"):
        name = where.split(" ")[1].split(".")[-2]
        if "Model" in name:
            assert values.get("use_safetensors") is True, where
            assert values.get("trust_remote_code") is False, where
    for where, values in [
        call for name in ("from_pretrained", "from_config", "load_dataset") for call in calls_of(name)
    ]:
        assert values.get("trust_remote_code", False) is False, where


@pytest.mark.parametrize("module", ["pickle", "cloudpickle", "dill", "shelve", "marshal"])
def test_no_module_that_unpickles_is_imported(module: str) -> None:
    imported = [
        (file, name)
        for file, node in CALLS
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    assert [file for file, name in imported if name.split(".")[0] == module] == []


def test_joblib_only_counts_cores() -> None:
    nodes = [
        node for _, node in CALLS if isinstance(node, ast.Import | ast.ImportFrom) and "joblib" in ast.unparse(node)
    ]
    assert [ast.unparse(node) for node in nodes] == ["from joblib import cpu_count"]


def test_numpy_loads_no_pickles() -> None:
    for where, values in calls_of("load"):
        if where.endswith((" np.load", " numpy.load")):
            assert values.get("allow_pickle", False) is False, where
