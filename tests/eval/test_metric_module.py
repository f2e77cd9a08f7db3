"""Metrics by name, and through `evaluate`."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eval import metric_module
from eval.metrics.exact_match import exact_match
from fledge.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Hub

METRICS = sorted(metric_module.METRICS.glob("[!_]*.py"))


@pytest.mark.parametrize("file", METRICS, ids=lambda file: file.stem)
def test_every_metric_file_holds_a_function_of_its_name(file: Path) -> None:
    assert metric_module.find(file.stem).__doc__


def test_metrics_load_through_evaluate(tmp_path: Path) -> None:
    code = (
        "import evaluate, sys\n"
        "for path in sys.argv[1:]:\n"
        "    print(evaluate.load(path).name)\n"
        "match = evaluate.load(sys.argv[1])\n"
        "assert match.compute(predictions=['a', 'b'], references=['a', 'c']) == {'exact_match': 0.5}\n"
        "assert match.compute(predictions=['a', 'b'], references=[['x', 'a'], ['b']]) == {'exact_match': 1.0}\n"
    )
    first = metric_module.METRICS / "exact_match.py"
    files = [first, *(file for file in METRICS if file != first)]
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=metric_module.METRICS.parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [file.stem for file in files]


def test_reading_a_metric_does_not_import_evaluate() -> None:
    code = "import sys; from eval.metrics import exact_match; sys.exit('evaluate' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=metric_module.METRICS.parent.parent)


def test_a_users_own_file_is_a_metric(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def mine(predictions, references):\n    return 0.25\n", encoding="utf-8")
    assert metric_module.find(str(tmp_path / "mine.py"))(["a"], ["b"]) == 0.25


def test_a_metric_of_the_hub_is_a_program_and_that_is_said(
    hub_server: "Hub", capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import datasets\nimport evaluate\n"
        "class Half(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'half': 0.5}\n"
    )
    hub_server.put("owner/half", {"half.py": program.encode()}, "spaces")
    assert metric_module.find("owner/half")(["a"], ["b"]) == {"half": 0.5}
    assert "owner/half: a metric of the hub is a program, which runs on this machine" in capsys.readouterr().err


def test_unknown_metrics_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no metric 'blue'; there are .*exact_match.*hub names \(owner/name\)"):
        metric_module.find("blue")
    with pytest.raises(ConfigError, match=r"gone\.py: no such file"):
        metric_module.find(str(tmp_path / "gone.py"))
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected a function `empty\(predictions, references\)` in it"):
        metric_module.find(str(tmp_path / "empty.py"))


def test_exact_match_counts_any_of_several_references() -> None:
    assert exact_match([" yes ", "no", "4"], ["yes", "No", ["four", "4"]]) == pytest.approx(2 / 3)
