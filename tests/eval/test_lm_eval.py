"""Numbers against lm-evaluation-harness itself, item by item; only where it is installed."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import harness, perplexity
from eval.config import TaskConfig
from eval.subject import Subject
from eval.tasks import minimal_pairs, multiple_choice
from fledge.__main__ import run
from fledge.tokens import TextTokenizer
from fledge.village.spec import rows

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'fledge-lm[lm-eval]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the library's own

PAIRS = list(rows("village:hamlet/minimal-pairs#24"))
QUESTIONS = [
    {"query": f"Question: who has {n} dogs?", "choices": ["Anna", "Bram and Anna", "nobody"], "gold": n % 3}
    for n in range(12)
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: "{choices}"
doc_to_target: {target}
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same items for both: data, and the library's task files."""
    found = tmp_path_factory.mktemp("tasks")
    settings = {
        "pairs": (PAIRS, "", "{{[sentence_good, sentence_bad]}}", "0"),
        "questions": (QUESTIONS, "{{query}}\\nAnswer:", "{{choices}}", "gold"),
    }
    for name, (content, text, choices, target) in settings.items():
        file = found / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
        task = TASK.format(name=name, file=file, text=text, choices=choices, target=target)
        (found / f"{name}.yaml").write_text(task)
    return found


@pytest.fixture(scope="module")
def long_model(
    make_model: Callable[..., Path], tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model with room for the longest pair: the library refuses a continuation that does not fit."""
    return make_model(tmp_path_factory.mktemp("long") / "model", tokenizer, context=128)


@pytest.fixture(scope="module")
def subject(long_model: Path) -> Subject:
    """The model as ours."""
    return Subject.open(str(long_model), "cpu")


@pytest.fixture(scope="module")
def library_model(long_model: Path) -> Any:
    """The model as the library itself loads it."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(long_model), device="cpu", dtype="float32", batch_size=4)


def by_library(model: Any, folder: Path, name: str) -> list[dict[str, Any]]:
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=[name], task_manager=manager, bootstrap_iters=0)
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize(
    ("name", "kind", "plain"),
    [("pairs", minimal_pairs, "accuracy_lm_eval"), ("questions", multiple_choice, "accuracy")],
)
def test_each_item_has_the_librarys_likelihoods_and_verdict(
    subject: Subject, library_model: Any, folder: Path, name: str, kind: Any, plain: str
) -> None:
    prompt = "{query}\nAnswer:" if name == "questions" else None
    task = TaskConfig(kind=kind.__name__.split(".")[-1], data=[str(folder / f"{name}.jsonl")], prompt=prompt)
    items = harness.read_items(task, kind, None)
    answers, _ = subject.answer(items, task)
    for item, given, sample in zip(items, answers, by_library(library_model, folder, name), strict=True):
        expected = [float(response[0][0]) for response in sample["resps"]]
        assert [answer.nats for answer in given] == pytest.approx(expected, abs=1e-4)
        scores = kind.score(item, given)
        assert scores[plain] == sample["acc"]
        if kind is multiple_choice:
            assert scores["accuracy_normalised"] == sample["acc_norm"]


def test_windows_of_text_are_the_librarys(subject: Subject, library_model: Any) -> None:
    text = " ".join(row["sentence_good"] for row in PAIRS)
    request = importlib.import_module("lm_eval.api.instance").Instance("loglikelihood_rolling", {}, (text,), 0)
    (expected,) = library_model.loglikelihood_rolling([request])
    document = perplexity.Document.of("text", [text], subject.tokenizer)
    found = [window.tokens for window in perplexity.windows(document, subject.scorer.context)]
    total = sum(float(score.logprobs.sum()) for score in subject.scorer.score(found))
    assert total == pytest.approx(float(expected), abs=1e-3)  # a sum of several hundred


def test_a_task_of_the_library_runs_by_name(
    long_model: Path, library_model: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(long_model), "--task=lm-eval:questions", "--data", str(folder), "--device=cpu", "--json"]
    assert run(["eval", "run", *arguments]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["lm-eval:questions"]
    expected = by_library(library_model, folder, "questions")
    assert found["acc"]["value"] == pytest.approx(sum(sample["acc"] for sample in expected) / 12)
    assert found["acc"]["n"] == 12
