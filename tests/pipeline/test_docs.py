"""What README.md and docs/ say: every block of them runs, every error text quoted is ours, and the notebook lives.

A page's blocks run in their order, in one process, with every command kept small. `<!-- not run: reason -->` above a
block leaves it out; its commands must still parse. A block whose first line is a comment with a file's name is that
file. Readers follow the pages in the order of PAGES: later ones use the runs of earlier ones.
"""

import csv
import io
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge import commands, config, models
from fledge.__main__ import run
from fledge.config import CommandConfig
from fledge.village import spec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOUR = DOCS / "tour.ipynb"
# README.md is a tour of its own; these share their runs.
PAGES = [
    f"{name}.md"
    for name in (
        "tokenizer",
        "pretraining",
        "processes",
        "finetuning",
        "evaluation",
        "rlhf",
        "ppo-details",
        "village",
        "extending",
    )
]
NOT_RUN = 5  # blocks that need several processes or machines, or a network
SHELL, FILES = ("", "bash", "sh"), ("python", "yaml", "json")
STAGES = ("tokenizer", "pretrain", "finetune", "rlhf", "eval")

# The most that a command may do here.
LIMITS: dict[str, Any] = {
    "vocab_size": 400,
    "sample_megabytes": 0.1,
    "size": 1,
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 2,
    "run.max_steps": 2,
    "run.threads": 1,
    "batch.sequences": 2,
    "batch.microbatch": 2,
    "batch.examples": 8,
    "batch.minibatch": 4,
    "rollout.episodes": 8,
    "validation.prompts": 4,
    "validation.at_end": 4,
    "validation.pairs": 4,
    "answers.at_end": 4,
    "answers.max_new_tokens": 8,
    "samples.max_new_tokens": 8,
    "sampling.max_new_tokens": 8,
    "sampling.reference": 32,
    "sampling.policy": 2,
    "max_prompts": 4,
    "max_new_tokens": 8,
    "label_draws": 1,
    "limit": 3,
}
VILLAGE_ROWS = 200


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    where: str  # "docs/rlhf.md:12"
    language: str
    text: str
    not_run: str | None  # why

    @property
    def file(self) -> str | None:
        """The file that it is, by a comment in its first line."""
        found = re.match(r"# ([\w./-]+\.\w+)\n", self.text)
        return found[1] if found and self.language in FILES else None

    def lines(self) -> list[str]:
        """Its logical lines without comments."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in joined if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found, text = [], page.read_text(encoding="utf-8")
    for match in re.finditer(r"(<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(3)].count("\n") + 1
        name = f"{page.relative_to(ROOT)}:{line}"
        found.append(Block(name, match[3], match[4], match[2]))
    return found


def arguments(line: str) -> list[str] | None:
    """What `fledge` is called with in a line of a shell block, also below a launcher; None: another program."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["fledge"]:
        return words[1:]
    launched = [words.index(flag) + 2 for flag in ("-m", "--module") if flag in words]
    return words[launched[0] :] if launched and words[launched[0] - 1] == "fledge" else None


def is_configured(words: list[str]) -> bool:
    """Whether it is a command of a stage, with --dry-run."""
    return bool(words) and words[0] in (*STAGES, "chat", "report", "plan")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Put back the number of threads, and forget the architectures that the pages added."""
    threads, path = torch.get_num_threads(), list(models.__path__)
    yield
    torch.set_num_threads(threads)
    for added in set(models.__path__) - set(path):
        for file in Path(added).glob("*.py"):
            del sys.modules[f"fledge.models.{file.stem}"]
    models.__path__[:] = path


@pytest.fixture
def small_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command does as little as LIMITS allows, whoever calls it."""
    execute = commands.execute

    def small(resolved: CommandConfig, *rest: Any, **named: Any) -> commands.Result:
        return execute(config.with_values(resolved, limited(resolved)), *rest, **named)

    monkeypatch.setattr(commands, "execute", small)


def limited(resolved: CommandConfig) -> dict[str, Any]:
    """The settings to change in a config, by dotted name."""
    values: dict[str, Any] = {}
    for leaf, _ in config.leaves(type(resolved)):
        name, value = ".".join(leaf), config.get(resolved, leaf)
        if name in LIMITS and (value or name == "run.threads" or name == "limit"):
            values[name] = min(value or LIMITS[name], LIMITS[name])
        if name == "time_budget" and value:
            values[name] = "1s"
        if isinstance(value, list):
            values[name] = [_fewer(text) for text in value]
    return {name: value for name, value in values.items() if value is not None}


def _fewer(text: Any) -> Any:
    if not str(text).startswith("village:"):
        return text
    name, _, count = text.partition("#")
    return f"{name}#{min(int(count or VILLAGE_ROWS), VILLAGE_ROWS)}"


def inputs(folder: Path) -> None:
    """The files that the pages speak of, made from the village."""
    stories = [row["text"] for row in spec.rows("village:hamlet#240")]
    (folder / "books").mkdir()
    for number in range(3):
        text = "\n\n".join(stories[80 * number : 80 * (number + 1)])
        (folder / "books" / f"{number}.txt").write_text(text, encoding="utf-8")
    for kind, file in (("instructions", "prompts.jsonl"), ("preferences", "preferences.jsonl")):
        spec.write(f"village:hamlet/{kind}#{VILLAGE_ROWS}", folder / file)
    asked = [row["messages"] for row in spec.rows(f"village:hamlet/instructions#{VILLAGE_ROWS}")]
    pairs = [(messages[-2]["content"], messages[-1]["content"]) for messages in asked]
    told = [{"instruction": question, "output": answer} for question, answer in pairs]
    (folder / "instructions.json").write_text(json.dumps(told), encoding="utf-8")
    answers = [json.dumps({"prompt": question, "completion": answer}) for question, answer in pairs[:8]]
    (folder / "answers.jsonl").write_text("\n".join(answers), encoding="utf-8")
    with (folder / "messages.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(spec.rows(f"village:hamlet/messages#{VILLAGE_ROWS}"))


def perform(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block, or write it where it is a file."""
    if block.file:
        path = Path(block.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if block.file.startswith("fledge/models/"):  # as if it stood there
            models.__path__.append(str(path.parent.resolve()))
        return
    if block.language == "python":
        exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})
        return
    for line in block.lines():
        words = arguments(line) if line.startswith("fledge ") else None
        if words is None:
            assert not re.search(r"\bfledge [a-z]", line), f"{block.where}: mark it as not run? {line}"
            continue
        code = run(words)
        told = capsys.readouterr().err
        # Nothing is learned in two steps, so the demo misses its bands.
        assert code in ((0, 3) if words[0] == "demo" else (0,)), f"{block.where}: {line}\n{told}"


@pytest.mark.parametrize("pages", [["README.md"], [f"docs/{page}" for page in PAGES]], ids=["readme", "docs"])
@pytest.mark.usefixtures("small_commands")
def test_every_block_of_the_pages_runs(
    pages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs(tmp_path)
    for block in itertools.chain.from_iterable(blocks(ROOT / page) for page in pages):
        if block.not_run is None and block.language in (*SHELL, *FILES):
            monkeypatch.setattr(sys, "stdin", io.StringIO("Where does the miller live?\n/quit\n"))
            perform(block, capsys)


def test_blocks_that_are_not_run_are_few_and_parse(capsys: pytest.CaptureFixture[str]) -> None:
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    left_out = [block for page in pages for block in blocks(page) if block.not_run]
    assert len(left_out) <= NOT_RUN, [f"{block.where}: {block.not_run}" for block in left_out]
    for block in left_out:
        for words in filter(None, map(arguments, block.lines())):
            code = run([*words, "--dry-run" if is_configured(words) else "--help"])
            assert code == 0, f"{block.where}: {capsys.readouterr().err}"


def test_every_page_is_run() -> None:
    assert sorted(path.name for path in DOCS.glob("*.md")) == sorted(PAGES)


def test_error_texts_on_the_pages_are_ours() -> None:
    sources = [
        path.read_text(encoding="utf-8") for stage in ("fledge", *STAGES) for path in (ROOT / stage).rglob("*.py")
    ]
    ours = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))  # strings that stand on several lines
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8").partition("\n## What goes wrong\n")[2]
        for quoted in re.findall(r"`([^`]*\.\.\.[^`]*)`", " ".join(text.split())):
            for piece in map(str.strip, quoted.split("...")):
                assert piece in ours, f"{page.name}: no message of ours has {piece!r}"


@pytest.mark.usefixtures("small_commands")
def test_the_notebook_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells()):
        exec(compile("".join(cell["source"]), f"docs/tour.ipynb:{number}", "exec"), scope)
    num_figures = len(pyplot.get_fignums())
    pyplot.close("all")
    pictures = [output for cell in code_cells() for output in cell["outputs"] if "data" in output]
    assert len(pictures) == num_figures > 0  # as stored from a real run


def test_the_notebook_is_whole_and_small() -> None:
    content = json.loads(TOUR.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells = content["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert [cell["execution_count"] for cell in code_cells()] == list(range(1, len(code_cells()) + 1))
    assert all(output["output_type"] in ("stream", "display_data") for c in code_cells() for output in c["outputs"])
    assert TOUR.stat().st_size <= 300_000


def code_cells() -> list[dict[str, Any]]:
    """The notebook's cells of code."""
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]
