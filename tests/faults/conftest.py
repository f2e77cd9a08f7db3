"""Small inputs for each command, made by the commands themselves, and runs of them that nothing disturbs."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_injection import HERE, Command, Zygote

ROOT = HERE.parents[1]
REPORT = ROOT / "build" / "faults.json"

SMALL = [
    "--run.threads=1",
    "--run.device=cpu",
    "--run.dtype=float32",
    "--run.max-steps=4",
    "--run.checkpoint-every=1",
    "--run.log-every=1",
    "--validation.every=2",
]
MODEL = ["--model.context=128", "--model.layers=1", "--model.width=32", "--model.heads=2"]
REWARD = "def score(rows, answers):\n    return [a.count('e') / (1 + len(a)) for a in answers]\n"
ARGUMENTS = {
    "tokenizer train": ["--input={stories}", "--vocab-size=300"],
    "pretrain prepare": ["--input={stories}", "--tokenizer={tokenizer}", "--checkpoint-megabytes=0.02", "--threads=1"],
    "pretrain train": [
        *("--data={shards}", *SMALL, *MODEL, "--batch.sequences=2", "--validation.sequences=2"),
        *("--samples.every=2", "--samples.max-new-tokens=4", "--model.architecture=gpt2", "--model.dropout=0.1"),
    ],
    "finetune instruct": [
        *("{base}", "--config=tiny", "--data=village:hamlet/instructions#60", *SMALL, "--validation.examples=4"),
        *("--answers.max-new-tokens=4", "--answers.at-end=2", "--pack=128", "--batch.examples=2"),
    ],
    "finetune classify": ["{base}", "--config=tiny", "--data=village:hamlet/messages#60", *SMALL, "--batch.examples=8"],
    "rlhf reward": ["{base}", "--config=tiny", "--data=village:hamlet/preferences#60", *SMALL],
    "rlhf ppo": [
        *("{base}", "--config=tiny", "--reward={reward}", "--prompts=village:hamlet/instructions:test#40", *SMALL),
        *("--sampling.max-new-tokens=4", "--rollout.episodes=4", "--batch.minibatch=2", "--batch.microbatch=2"),
        *("--validation.prompts=2", "--validation.at-end=4"),
    ],
    "rlhf dpo": [
        *("{base}", "--config=tiny", "--data=village:hamlet/preferences#60", *SMALL, "--validation.pairs=4"),
        *("--validation.prompts=2", "--validation.at-end=2", "--sampling.max-new-tokens=4", "--batch.examples=2"),
    ],
    "rlhf grpo": [
        *("{base}", "--config=tiny", "--reward={reward}", "--prompts=village:hamlet/instructions:test#40", *SMALL),
        *("--validation.prompts=2", "--validation.at-end=2", "--sampling.max-new-tokens=4", "--group.answers=2"),
        "--batch.examples=4",
    ],
}  # fmt: skip
Record = Callable[[str, str, int, int], None]
PRODUCTS = {"tokenizer train": "tokenizer/tokenizer.json", "pretrain prepare": "shards/index.json"}


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts commands with faults."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("faults are injected by a preloaded library: needs Linux and a C compiler")
    workplace = tmp_path_factory.mktemp("zygote")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", workplace / "shim.so", HERE / "shim.c", "-ldl"]
    subprocess.run(command, check=True)
    started = Zygote(workplace / "shim.so", workplace)
    yield started
    started.close()


@pytest.fixture(scope="session")
def inputs(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Text, tokenizer, shards, a base model and a reward."""
    folder = tmp_path_factory.mktemp("inputs")
    found = {name: str(folder / name) for name in ("tokenizer", "shards", "base")}
    found |= {"stories": str(folder / "stories.jsonl"), "reward": str(folder / "reward.py")}
    texts = [{"text": f"{n}: once upon a time there was a fox named {n * n}.\n" * 5} for n in range(400)]
    Path(found["stories"]).write_text("".join(json.dumps(text) + "\n" for text in texts))
    Path(found["reward"]).write_text(REWARD)
    for name, out in (("tokenizer train", "tokenizer"), ("pretrain prepare", "shards"), ("pretrain train", "base")):
        made = _command(name, found)
        outcome = zygote.run(made.starting(Path(found[out])), folder)
        assert outcome.code == 0, outcome.said
    return found


def _command(name: str, inputs: dict[str, str]) -> Command:
    arguments = [argument.format(**inputs) for argument in ARGUMENTS[name]]
    return Command(name, arguments, PRODUCTS.get(name, "model/model.safetensors"))


@pytest.fixture(scope="session")
def command_of(
    zygote: Zygote, inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Command]:
    """A command by its name, with its undisturbed run."""
    made: dict[str, Command] = {}

    def command(name: str) -> Command:
        if name not in made:
            new = made[name] = _command(name, inputs)
            new.whole = tmp_path_factory.mktemp("whole") / "run"
            began = time.monotonic()
            outcome = zygote.run(new.starting(new.whole), new.whole)
            new.wall_s = time.monotonic() - began
            assert outcome.code == 0, outcome.said
            new.calls = outcome.calls
        return made[name]

    return command


# --- what was injected, and what of it survived ---


@pytest.fixture
def record(record_property: Callable[[str, Any], None]) -> Record:
    """Notes, for the summary: kind of fault, command, how many were injected, how many survived."""

    def note(kind: str, command: str, injected: int, survived: int) -> None:
        record_property("fault", [kind, command, injected, survived])

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Sum up in one line, and by kind and command in a JSON file."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    faults = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if not faults:
        return
    total: Counter[str] = Counter()
    cells: dict[str, dict[str, Counter[str]]] = {}
    for kind, command, injected, survived in faults:
        count = Counter(injected=injected, survived=survived)
        total += count
        cells.setdefault(kind, {}).setdefault(command, Counter()).update(count)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps({"total": total, "by_kind_and_command": cells}, indent=1))
    is_well = total["injected"] == total["survived"] and not terminalreporter.stats.get("failed")
    lost = "nothing lost" if is_well else "SEE THE FAILURES"
    terminalreporter.write_line(
        f"faults: {total['survived']} survived of {total['injected']} injected, {lost} ({REPORT.relative_to(ROOT)})"
    )
