"""Tasks with generated answers."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import generated, harness, intervals
from eval.config import TaskConfig
from eval.items import Generated, Generation, Item, LogLikelihood, Ratio
from eval.metrics.bleu import bleu
from eval.metrics.distinct_n import distinct_n
from eval.subject import Subject
from eval.tasks import multiple_choice
from fledge.data import prompts
from fledge.data.rows import Row
from fledge.errors import ConfigError, DataError, FledgeError
from fledge.models import generation
from fledge.models.generation import Completion


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A file of rows."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def written_by(subject: Subject, prompt: str, new_tokens: int) -> str:
    """The model's own greedy answer, one prompt at a time."""
    ids = subject.tokenizer.encode(prompt)
    import torch

    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(subject.model(torch.tensor([ids]))[0, -1].argmax()))
    return subject.tokenizer.decode(ids[len(subject.tokenizer.encode(prompt)) :])


def test_answers_are_compared_with_those_in_the_data(subject: Subject, tmp_path: Path) -> None:
    truth = written_by(subject, "Mara", 6)
    rows = [{"prompt": "Mara", "completion": truth}, {"prompt": "The baker", "completion": "something else"}]
    task = TaskConfig(kind="answers", data=[write(tmp_path, rows)], max_new_tokens=6)
    result = harness.measure(subject, task)
    assert result["items"]["values"]["exact_match"] == [1.0, 0.0]
    assert result["metrics"]["exact_match"]["value"] == 0.5
    assert result["items"]["values"]["answer_tokens"] == [6.0, 6.0]
    assert {"rouge_l", "bleu", "distinct_2", "stopped"} <= set(result["metrics"])
    assert result["metrics"]["bleu"]["n"] == 2
    assert result["settings"]["template"] == "none: plain text"


def test_answers_are_float32s_and_say_so(subject: Subject, tmp_path: Path) -> None:
    low = Subject.open(str(subject.path), "cpu", "bfloat16")
    task = TaskConfig(kind="answers", data=[write(tmp_path, [{"prompt": "a", "completion": "b"}])])
    assert harness.measure(low, task)["settings"]["dtype"] == "float32"


def test_too_little_memory_for_answers_makes_batches_smaller_and_says_so(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [Generation(prompt, 4) for prompt in ("Mara", "The", "A dog", "x", "Who", "One", "is")]
    alone, real = subject.generate(requests), generation.generate

    def crowded(model: Any, prompts: Any, *arguments: Any) -> list[Completion]:
        if len(prompts) > 2:
            raise RuntimeError("CUDA out of memory")
        return real(model, prompts, *arguments)

    monkeypatch.setattr(generation, "generate", crowded)
    assert Subject(subject.path, "cpu", "float32", batch_size=5).generate(requests) == alone
    assert "not enough memory for 5 texts at once; going on with 2" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["Mara", ({"role": "user", "content": "Mara"},)], ids=["text", "turn"])
def test_answers_end_where_the_model_folder_says(subject: Subject, tmp_path: Path, prompt: Any) -> None:
    own = Subject(Path(shutil.copytree(subject.path, tmp_path / "model")), "cpu", "float32", 0)
    request = Generation(prompt, 12)
    (free,) = own.continued([own._prompt_ids(request)], own._sampling(request))
    end = free.ids[4]
    (own.path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}), encoding="utf-8")
    (answer,) = own.generate([request])
    assert (answer.has_stopped, answer.num_tokens) == (True, free.ids.index(end) + 1)


def test_the_baseline_of_an_answer_is_a_copy_of_the_prompt(subject: Subject, tmp_path: Path) -> None:
    rows = [{"prompt": "red blue green", "completion": "red blue green"}, {"prompt": "a", "completion": "b"}]
    task = TaskConfig(kind="answers", data=[write(tmp_path, rows)], max_new_tokens=2)
    metrics = harness.measure(subject, task)["metrics"]
    assert metrics["exact_match"]["baseline"] == 0.5
    assert metrics["rouge_l"]["baseline"] == 0.5


def test_a_baseline_is_the_mean_over_sets_as_the_metric_is(subject: Subject, tmp_path: Path) -> None:
    files = []
    for name, rows in (
        ("a", [{"prompt": "red blue", "completion": "red blue"}]),
        ("b", [{"prompt": "a", "completion": "b"}] * 9),
    ):
        (tmp_path / name).mkdir()
        files.append(write(tmp_path / name, rows))
    task = TaskConfig(kind="answers", data=files, max_new_tokens=2)
    metrics = harness.measure(subject, task)["metrics"]
    assert metrics["exact_match"]["baseline"] == 0.5  # 1 of 1 in one set, 0 of 9 in the other
    copied = [["red", "blue"], *[["a"]] * 9], [["red", "blue"], *[["b"]] * 9]
    assert metrics["bleu"]["baseline"] == bleu(*([" ".join(words) for words in side] for side in copied))


def test_who_always_says_the_same_says_it_in_all_sets() -> None:
    def item(name: str, gold: int) -> Item:
        requests = tuple(LogLikelihood("", choice) for choice in "ab")
        return Item(Row(f"{name}:1", 1, {}), requests, name, facts={"gold": gold})

    apart = [item("a", 0), item("b", 1)]  # the first place is right in one file, the second in the other
    assert multiple_choice.blind(apart) == 0.5
    assert multiple_choice.blind([*apart, item("b", 0)]) == (1 + 1 / 2) / 2


def test_the_baseline_is_the_better_of_saying_nothing_and_repeating_the_prompt() -> None:
    items = [Item(Row("f:1", 1, {}), (), "f", facts={"prompt": "a prompt"})]
    assert generated.best_copies(items, lambda item, text: {"silent": not text, "long": len(text)}) == {
        "silent": 1,
        "long": 8,
    }


def test_the_baseline_of_a_ratio_weighs_rows_by_their_whole() -> None:
    items = [Item(Row("f:1", 1, {}), (), "f", facts={"prompt": text}) for text in ("a", "bb")]
    wholes = {"a": 1.0, "bb": 3.0}
    found = generated.best_copies(items, lambda item, text: {"m": Ratio(len(text) % 2, wholes[item.facts["prompt"]])})
    assert found == {"m": 1 / 4}


def test_metrics_of_ones_own_are_told_beside(subject: Subject, tmp_path: Path) -> None:
    metric = tmp_path / "first.py"
    metric.write_text("def first(predictions, references):\n    return {'first': len(references)}\n", "utf-8")
    rows = [{"prompt": "a", "completion": "b"}] * 3
    task = TaskConfig(kind="answers", data=[write(tmp_path, rows)], max_new_tokens=2, metrics=[str(metric)])
    assert harness.measure(subject, task)["metrics"][str(metric)]["value"] == 3


def test_an_empty_reference_is_refused(subject: Subject, tmp_path: Path) -> None:
    file = write(tmp_path, [{"prompt": "a", "reference": " "}])
    task = TaskConfig(kind="answers", data=[file], prompt="{prompt}")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no answer to compare with, or an empty one"):
        harness.measure(subject, task)


def test_a_missing_field_is_named(subject: Subject, tmp_path: Path) -> None:
    file = write(tmp_path, [{"query": "a"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no field 'ask', which the task names; it has query"):
        harness.measure(subject, TaskConfig(kind="checked", check="gsm8k", data=[file], fields={"prompt": "ask"}))
    with pytest.raises(DataError, match=r'rows\.jsonl:1: expected "prompt", "messages", "question" or "instruction"'):
        harness.measure(subject, TaskConfig(kind="checked", check="gsm8k", data=[file]))


def test_a_check_of_ones_own_judges_answers(subject: Subject, tmp_path: Path) -> None:
    check = tmp_path / "long.py"
    check.write_text("def check(row, answer):\n    return float(len(answer) > row['least'])\n", "utf-8")
    rows = [{"prompt": "Mara", "least": 0}, {"prompt": "Mara", "least": 1000}]
    task = TaskConfig(kind="checked", check=str(check), data=[write(tmp_path, rows)], max_new_tokens=4)
    result = harness.measure(subject, task)
    assert result["items"]["values"]["right"] == [1.0, 0.0]
    # The same prompt twice is one observation.
    assert result["metrics"]["right"]["high"] == pytest.approx(intervals.proportion(0.5, 1).high)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 / 0", r"long\.py: can't be imported: ZeroDivisionError: division by zero"),
        ("def check(row, answer):\n    return row['least']", r"rows\.jsonl:1: the check raises KeyError: 'least'"),
        (
            "def check(row, answer):\n    return None",
            r"rows\.jsonl:1: the check raises TypeError: float\(\) argument must be",
        ),
        (
            "def check(row, answer):\n    return 1\ndef cluster(row):\n    return row['name']",
            r"rows\.jsonl:1: the check raises KeyError: 'name'",
        ),
    ],
    ids=["import", "raises", "none", "cluster"],
)
def test_what_a_check_raises_is_told_with_its_row(subject: Subject, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "long.py").write_text(content, encoding="utf-8")
    file = write(tmp_path, [{"prompt": "a"}])
    with pytest.raises(FledgeError, match=message):
        harness.measure(subject, TaskConfig(kind="checked", check=str(tmp_path / "long.py"), data=[file]))


def test_a_metric_that_fails_is_told(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "ratio.py").write_text("def ratio(predictions, references):\n    return 1 / 0", encoding="utf-8")
    file = write(tmp_path, [{"prompt": "a", "completion": "b"}])
    with pytest.raises(FledgeError, match=r"ratio\.py: ZeroDivisionError: division by zero"):
        harness.measure(subject, TaskConfig(kind="answers", metrics=[str(tmp_path / "ratio.py")], data=[file]))


def test_unknown_checks_say_what_there_is(subject: Subject, tmp_path: Path) -> None:
    file = write(tmp_path, [{"prompt": "a"}])
    with pytest.raises(ConfigError, match=r"'check: sums': no such check; there are arithmetic, gsm8k, ifeval, vill"):
        harness.measure(subject, TaskConfig(kind="checked", check="sums", data=[file]))
    (tmp_path / "none.py").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"none\.py: expected a function `check\(row, answer\)` in it"):
        harness.measure(subject, TaskConfig(kind="checked", check=str(tmp_path / "none.py"), data=[file]))


def test_a_row_that_a_check_refuses_is_named_before_any_answer(subject: Subject, tmp_path: Path) -> None:
    file = write(tmp_path, [{"prompt": "a", "answer": "1"}, {"prompt": "a", "answer": "many"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: expected a number in 'answer'"):
        harness.measure(subject, TaskConfig(kind="checked", check="gsm8k", data=[file]))


def test_the_village_asks_its_test_questions(subject: Subject) -> None:
    _, task = harness.find_task("village_questions")
    task = task.model_copy(update={"data": ["village:hamlet/instructions:test#20"], "max_new_tokens": 4})
    result = harness.measure(subject, task)
    facts = [value for value in result["items"]["values"]["right_facts"] if value is not None]
    assert len(facts) == 12  # six in ten
    assert result["metrics"]["right_facts"]["baseline"] == 0
    assert result["settings"]["template"] == "the model's own"


def test_pooled_intervals_of_a_mean_are_those_of_the_mean() -> None:
    values = [float(n % 7) for n in range(20)]  # one to a group: then the jackknife is Student's interval
    estimate = generated.pooled_estimate(lambda column: sum(column) / len(column), values)
    mean = sum(values) / 20
    error = (sum((v - mean) ** 2 for v in values) / 19 / 20) ** 0.5
    assert estimate.value == pytest.approx(mean)
    assert estimate.high - estimate.value == pytest.approx(2.0930 * error, rel=1e-4)  # t, 19 degrees


def test_the_interval_of_a_share_stays_between_0_and_1() -> None:
    found = generated.pooled_estimate(lambda column: sum(column) / len(column), [0.0, 1.0, 1.0], is_share=True)
    assert (found.low, found.high) == (0, 1)


def test_pooled_estimates_are_the_metric_itself() -> None:
    texts, references = ["the cat sat on a mat"] * 3, ["the cat sat on the mat", "a cat", "mat"]
    assert generated.pooled_estimate(bleu, texts, references).value == bleu(texts, references)
    assert generated.pooled_estimate(distinct_n, texts).value == distinct_n(texts)


@pytest.mark.parametrize(
    ("values", "asked", "reference"),
    [
        ({"prompt": "Hi"}, ["Hi"], None),
        ({"prompt": "Hi", "completion": "Yo"}, ["Hi"], "Yo"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, ["Add\n\n1 2"], "3"),
        ({"instruction": "Add", "instances": [{"input": "1 2", "output": "3"}]}, ["Add\n\n1 2"], "3"),
        ({"instruction": "Add"}, ["Add"], None),
        ({"question": "2 + 2?", "answer": "#### 4"}, ["2 + 2?"], "#### 4"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, ["Hi"], None),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, ["Hi"], None),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}, ["Hi"], "Yo"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, ["Hi"], "Yo"),
    ],
)
def test_a_prompt_is_found_in_every_format(values: dict[str, Any], asked: list[str], reference: str | None) -> None:
    found = prompts.of_row(values)
    assert [message["content"] for message in found.messages] == asked
    assert found.reference == reference


def test_rows_without_a_prompt_are_refused() -> None:
    with pytest.raises(ValueError, match='expected "prompt", "messages", "question" or "instruction"'):
        prompts.of_row({"text": "a"})
    with pytest.raises(ValueError, match="the prompt is empty"):
        prompts.of_row({"prompt": " "})
    with pytest.raises(ValueError, match="a message has no role or no text"):
        prompts.of_row({"messages": [{"role": "user"}]})
    for instances in ("foo", ["foo"], {"input": "foo"}):
        with pytest.raises(ValueError, match="'instances' is no list of objects"):
            prompts.of_row({"instruction": "x", "instances": instances})


def test_a_template_for_prompts_takes_any_fields() -> None:
    row = Row("f", 1, {"a": 1, "b": "x", "answer": 7})
    prompt = generated.prompt_of(row, TaskConfig(kind="checked", prompt="{a} and {b}?"))
    assert (generated.text_of(prompt), prompt.reference) == ("1 and x?", "7")


def test_where_an_answer_must_stop_one_that_runs_on_is_wrong() -> None:
    from eval.items import Item
    from eval.tasks import checked
    from fledge.data import rows

    (row,) = rows.read(["village:hamlet/instructions:test#1"]).rows
    task = TaskConfig(kind="checked", check="village", must_stop=True)
    asked: Item = checked.item(row, task)
    truth = row.values["messages"][-1]["content"]
    for has_stopped in (True, False):
        found = checked.score(asked, [Generated(truth, has_stopped, 9)])
        assert found["right"] == float(has_stopped)
    free = checked.item(row, task.model_copy(update={"must_stop": False}))
    assert checked.score(free, [Generated(truth, False, 9)])["right"] == 1
