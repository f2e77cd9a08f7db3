"""`fledge eval run`, through the command line."""

import importlib.util
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from eval.config import TaskConfig
from eval.harness import find_task, read_items
from eval.items import Item, LogLikelihood
from eval.run import find_suite
from eval.tasks import preferences
from fledge import hub
from fledge.__main__ import run
from fledge.data.rows import Row

if TYPE_CHECKING:
    from conftest import Hub

ROOT = Path(__file__).resolve().parents[2]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def results(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object of a run that succeeds."""
    assert run(["eval", "run", *arguments, "--device=cpu", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_a_folder_scores_the_unweighted_mean_over_its_sets(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"sentence_good": "Anna has a dog.", "sentence_bad": "Dog a has Anna, a dog, and a cat as well."}
    turned = {"sentence_good": pair["sentence_bad"], "sentence_bad": pair["sentence_good"]}
    write_rows(tmp_path / "d" / "a.jsonl", [pair, pair, pair])
    write_rows(tmp_path / "d" / "b.jsonl", [turned])
    found = results(capsys, str(model_folder), "--task", "blimp", "--data", str(tmp_path / "d"))
    assert found["results"]["blimp"]["accuracy"]["value"] == 0.5
    assert found["results"]["blimp"]["accuracy"]["n"] == 4
    sets = found["details"]["blimp"]["sets"]
    assert sorted(values["accuracy"]["value"] for values in sets.values()) == [0.0, 1.0]
    assert set(found["results"]["blimp"]["accuracy"]) == {"value", "low", "high", "n", "baseline", "detectable"}


def test_what_a_limit_leaves_out_is_not_kept(tmp_path: Path) -> None:
    made: list[weakref.ref[Item]] = []
    alive: list[int] = []

    def item(row: Row, task: TaskConfig) -> Item:
        alive.append(sum(one() is not None for one in made))
        one = Item(row, (), str(row.values["set"]))
        made.append(weakref.ref(one))
        return one

    data = write_rows(tmp_path / "a.jsonl", [{"set": number % 2} for number in range(40)])
    task = TaskConfig(kind="own", data=[str(data)])
    assert len(read_items(task, SimpleNamespace(FIELDS=(), item=item), 3)) == max(alive) == 6


def test_a_continuation_that_was_cut_has_no_bits_per_byte(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "own.yaml"
    task.write_text("kind: continuation")
    short, long = [{"context": "Anna", "continuation": " has a dog" * times} for times in (1, 40)]
    found = [
        results(capsys, str(model_folder), "--task", str(task), "--data", str(write_rows(tmp_path / "a.jsonl", rows)))
        for rows in ([short], [short, long])
    ]
    alone, beside = (one["results"]["own"] for one in found)
    assert beside["bits_per_byte"]["value"] == pytest.approx(alone["bits_per_byte"]["value"])
    assert (beside["bits_per_byte"]["n"], beside["accuracy"]["n"]) == (1, 2)


def test_a_tie_counts_half_here_and_one_in_lm_eval(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"sentence_good": "Same.", "sentence_bad": "Same."}])
    found = results(capsys, str(model_folder), "--task", "blimp", "--data", str(file))["results"]["blimp"]
    assert (found["accuracy"]["value"], found["accuracy_lm_eval"]["value"]) == (0.5, 1.0)


def test_a_second_run_reads_what_the_first_measured(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(model_folder), "--task=village_pairs", "--limit=3", "--out", str(tmp_path / "out")]
    first = results(capsys, *arguments)
    assert run(["eval", "run", *arguments, "--device=cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["results"] == first["results"]
    assert "village_pairs: measured before" in err


def test_other_data_or_limit_is_measured_for_itself(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, n in ((3, 24), (2, 16)):  # eight paradigms
        arguments = ["--task=village_pairs", f"--limit={limit}", "--out", str(tmp_path / "out")]
        found = results(capsys, str(model_folder), *arguments)
        assert found["results"]["village_pairs"]["accuracy"]["n"] == n
    assert len(list((tmp_path / "out").glob("village_pairs-*.json"))) == 2


def test_data_of_the_hub_that_changed_is_measured_again(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], hub_server: "Hub"
) -> None:
    def bits(text: str) -> float:
        hub_server.put("owner/text", {"a.jsonl": json.dumps({"text": text}).encode()}, "datasets")
        hub._known.clear()
        found = results(capsys, str(model_folder), "--task=perplexity", "--data=owner/text", f"--out={tmp_path}/out")
        return float(found["results"]["perplexity"]["bits_per_byte"]["value"])

    first = bits("Anna has a dog. " * 9)
    assert bits("Der Hund sieht den Bach. " * 9) != first
    assert bits("Anna has a dog. " * 9) == first
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace('"version": 3', '"version": 2'), "of version 2, this is 3; left out"),
        (lambda text: text[:100], "can't be read"),
        (lambda text: text.replace('"sha256": "', '"sha256": "0'), "of other weights; measuring again"),
    ],
)
def test_a_result_that_does_not_fit_is_measured_again_aloud(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    arguments = [str(model_folder), "--task=village_pairs", "--limit=2", "--out", str(tmp_path / "out")]
    first = results(capsys, *arguments)
    (file,) = (tmp_path / "out").glob("*.json")
    file.write_text(damage(file.read_text()))
    assert run(["eval", "run", *arguments, "--device=cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert message in err
    assert json.loads(out.splitlines()[-1])["results"] == first["results"]
    assert json.loads(file.read_text())["version"] == 3


def test_a_task_of_ones_own_names_its_kind_data_and_fields(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"ask": f"Who has {n} dogs?", "of": ["Anna", "Bram"], "right": "Bram"} for n in range(3)]
    data = write_rows(tmp_path / "own.jsonl", rows)
    (tmp_path / "mine.yaml").write_text(
        f"kind: multiple_choice\ndata: ['{data}']\nfields: {{query: ask, choices: of, gold: right}}\n"
        "prompt: 'Question: {ask}'\n"
    )
    found = results(capsys, str(model_folder), "--task", str(tmp_path / "mine.yaml"))
    assert found["results"]["mine"]["accuracy"]["n"] == 3
    assert found["results"]["mine"]["accuracy"]["baseline"] == 1.0  # always the second
    assert found["details"]["mine"]["settings"]["prompt"] == "Question: {ask}"


def test_a_file_of_ones_own_may_have_a_shipped_tasks_name(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"sentence_good": "Anna has a dog.", "sentence_bad": "Dog a has Anna."}
    data = write_rows(tmp_path / "own.jsonl", [pair])
    (tmp_path / "blimp.yaml").write_text(f"kind: minimal_pairs\ndata: ['{data}']\n")
    found = results(capsys, str(model_folder), "--task", str(tmp_path / "blimp.yaml"))
    assert found["results"]["blimp"]["accuracy"]["n"] == 1


def test_a_check_of_ones_own_that_was_changed_is_asked_again(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "own.jsonl", [{"prompt": "Anna"}])
    check = tmp_path / "mine.py"
    (tmp_path / "mine.yaml").write_text(f"kind: checked\ncheck: {check}\ndata: ['{data}']\nmax_new_tokens: 2\n")
    arguments = [str(model_folder), "--task", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
    for verdict in (0.0, 1.0):
        check.write_text(f"def check(row, answer):\n    return {verdict}\n")
        assert results(capsys, *arguments)["results"]["mine"]["right"]["value"] == verdict


def test_a_check_that_gives_no_number_is_told_with_its_row(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "own.jsonl", [{"prompt": "Anna"}, {"prompt": "Bram"}])
    check, metric = tmp_path / "mine.py", tmp_path / "ratio.py"
    check.write_text("def check(row, answer):\n    return float('nan' if row['prompt'] == 'Bram' else 1)\n")
    task = tmp_path / "mine.yaml"
    task.write_text(f"kind: checked\ncheck: {check}\ndata: ['{data}']\nmax_new_tokens: 2\n")
    assert run(["eval", "run", str(model_folder), "--task", str(task), "--device=cpu"]) == 1
    assert "own.jsonl:2: right is nan, no finite number" in capsys.readouterr().err
    metric.write_text("def ratio(predictions, references):\n    return float('inf')\n")
    write_rows(data, [{"prompt": "Anna", "completion": "b"}] * 3)
    task.write_text(f"kind: answers\nmetrics: ['{metric}']\ndata: ['{data}']\nmax_new_tokens: 2\n")
    assert run(["eval", "run", str(model_folder), "--task", str(task), "--device=cpu"]) == 1
    assert "of all answers is inf, no finite number" in capsys.readouterr().err


def test_data_that_a_task_makes_no_use_of_is_told(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "own.jsonl", [{"text": "Anna has a dog."}])
    assert run(["eval", "run", str(model_folder), "--task=own_text", f"--data={data}", "--device=cpu"]) == 1
    assert "own_text: makes no use of --data" in capsys.readouterr().err
    results(
        capsys, str(model_folder), "--task=village_pairs", "--task=village_questions", f"--data={data}", "--limit=1"
    )
    assert run(["eval", "run", str(model_folder), "--task=perplexity", f"--data={data}", "--device=cpu"]) == 0
    assert "makes no use" not in capsys.readouterr().err


def test_prompts_that_are_cut_are_told(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "own.jsonl", [{"prompt": "Anna " * n, "completion": "b"} for n in (1, 90)])
    assert run(["eval", "run", str(model_folder), "--task=answers", f"--data={data}", "--device=cpu"]) == 0
    assert "1 of 2 prompts did not fit into the context of 64 tokens with an answer" in capsys.readouterr().err


@pytest.mark.parametrize("chat", ["false", "true"])
def test_preferences_read_dialogues_and_pass_over_a_few_bad_rows(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], chat: str
) -> None:
    before = "\n\nHuman: Hello.\n\nAssistant: Yes?\n\nHuman: Who has a dog?\n\nAssistant:"
    rows = [{"chosen": f"{before} Anna.", "rejected": f"{before} Bram the baker."}] * 120
    data = write_rows(tmp_path / "own.jsonl", [*rows, {"chosen": f"{before} Anna.", "rejected": before}])
    (tmp_path / "mine.yaml").write_text(f"kind: preferences\nchat: {chat}\ndata: ['{data}']\n")
    arguments = [str(model_folder), "--task", str(tmp_path / "mine.yaml"), "--device=cpu", "--json"]
    assert run(["eval", "run", *arguments]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])["results"]["mine"]["accuracy"]
    assert (found["n"], found["baseline"]) == (120, 1.0)  # always the shorter one
    assert "passed over" in err
    assert "own.jsonl:121: 'rejected': message 4 (assistant) is empty" in err


def test_a_dialogues_context_is_its_turns() -> None:
    before = "\n\nHuman: Hello.\n\nAssistant: Yes?\n\nHuman: Who?\n\nAssistant:"
    row = Row("here", 1, {"chosen": f"{before} Anna.", "rejected": f"{before} Bram."})
    plain, chat = (preferences.item(row, TaskConfig(kind="preferences", chat=chat)) for chat in (False, True))
    assert plain.requests == (LogLikelihood(before, " Anna."), LogLikelihood(before, " Bram."))
    turns = (("user", "Hello."), ("assistant", "Yes?"), ("user", "Who?"))
    messages = tuple({"role": role, "content": text} for role, text in turns)
    assert chat.requests == (LogLikelihood(messages, "Anna."), LogLikelihood(messages, "Bram."))


CHOICE = {"query": "Who?", "choices": ["Anna", "Bram"], "gold": 0}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("kind: multiple_choice", {"query": "Who?"}, "own.jsonl:1: no field 'choices'; it has query"),
        ("kind: multiple_choice", CHOICE | {"gold": 2}, "'gold' is 2; expected 0 to 1, counted from 0"),
        ("kind: multiple_choice", CHOICE | {"choices": ["", "x"]}, "'choices' must be a list of two texts"),
        ("kind: multiple_choice\nprompt: '{nothing}'", CHOICE, "'prompt' asks for 'nothing'; the row has query"),
        ("kind: continuation", {"context": "1+1=", "continuation": " "}, "'continuation' is empty; a reference"),
        (
            "kind: multiple_choice\nprompt: '{query.dogs}'",
            CHOICE,
            "'prompt' can't be filled in ('str' object has no attribute 'dogs'); the row has query",
        ),
        (
            "kind: answers\nprompt: '{choices[2]}'",
            CHOICE,
            "own.jsonl:1: 'prompt' can't be filled in (list index out of range); the row has query, choices, gold",
        ),
        (
            "kind: answers\nprompt: '{query[dogs]}'",
            CHOICE,
            "own.jsonl:1: 'prompt' can't be filled in (string indices must be integers",
        ),
        (
            "kind: minimal_pairs",
            {"sentence_good": "A dog.", "sentence_bad": 3},
            "own.jsonl:1: both sentences must be texts, none of them empty",
        ),
        ("kind: preferences", {"prompt": "a", "chosen": "b", "rejected": ""}, "own.jsonl:1: 'rejected' is empty"),
        (
            "kind: preferences",
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "own.jsonl:1: 'chosen' and 'rejected' answer different prompts",
        ),
        ("kind: schema", {"context_options": ["a"], "continuation": "b", "gold": 0}, "list of two texts or more"),
        ("kind: guessing", CHOICE, "no kind of task 'guessing'; there are: answers"),
        ("knid: guessing", CHOICE, "own.yaml:1: unknown key 'knid'; did you mean 'kind'?"),
    ],
)
def test_what_is_wrong_with_a_task_is_said(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, row: dict[str, Any], message: str
) -> None:
    data = write_rows(tmp_path / "own.jsonl", [row])
    (tmp_path / "own.yaml").write_text(f"{task}\ndata: ['{data}']\n")
    assert run(["eval", "run", str(model_folder), "--task", str(tmp_path / "own.yaml"), "--device=cpu"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=blmp"], "--task blmp: no such task; there are: "),
        (["--suite=fast"], "--suite fast: no such suite; there are: "),
        (["--task=blimp"], "its data is not here; give --task blimp --data PATHS"),
        (["--task=perplexity", "--task=answers", "--data=a"], "perplexity needs text: give --data PATHS, to one task"),
        (["--task=blimp", "--task=piqa", "--task=blimp"], "--task blimp: another task is called blimp as well; rename"),
        (["--suite=quick"], "none of its tasks can be measured on this model"),
    ],
)
def test_what_is_missing_is_said(
    model_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["eval", "run", str(model_folder), *arguments, "--device=cpu"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "eval" / "suites").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_suite_names_tasks_that_are_there(file: Path) -> None:
    for name in find_suite(file.stem).tasks:
        find_task(name)


@pytest.mark.parametrize("file", sorted((ROOT / "eval" / "tasks").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_task_names_a_kind_that_is_there(file: Path) -> None:
    assert find_task(file.stem)[0] == file.stem


def test_an_lm_eval_task_needs_the_extra(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm_eval is installed here")
    assert run(["eval", "run", str(model_folder), "--task=lm-eval:piqa", "--device=cpu"]) == 1
    assert "--task lm-eval: not installed; pip install 'fledge-lm[lm-eval]'" in capsys.readouterr().err
