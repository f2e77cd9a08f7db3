"""Models on the same items, and what has become worse."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy import stats

from eval import compare, intervals, pairing
from eval.config import CompareConfig
from fledge.__main__ import run
from fledge.cli import cli
from fledge.errors import ConfigError
from fledge.tokens import TextTokenizer

TASK = "village_pairs"


def result(
    values: list[Any], where: list[str] | None = None, sets: list[str] | None = None, cluster: list[str] | None = None
) -> dict[str, Any]:
    """A result with one metric over some items."""
    n = len(values)
    pairs = [v if isinstance(v, list) else [v, 1.0] for v in values]
    names = sets or ["a"] * n
    shares = []
    for name in dict.fromkeys(names):
        own = [pair for pair, its in zip(pairs, names, strict=True) if its == name]
        shares.append(sum(p for p, _ in own) / sum(w for _, w in own))
    return {
        "metrics": {"m": {"value": sum(shares) / len(shares), "low": 0.0, "high": 1.0, "n": n}},
        "items": {
            "where": where or [f"f:{i}" for i in range(n)],
            "set": names,
            "cluster": cluster or [""] * n,
            "values": {"m": values},
        },
    }


def test_a_difference_of_means_is_the_paired_t_test() -> None:
    first, second = [0.1, 0.5, 0.9, 0.3, 0.2], [0.3, 0.4, 1.2, 0.6, 0.1]
    found = pairing.difference([result(first)], [result(second)], "m")
    oracle = stats.ttest_rel(second, first)
    assert found is not None
    assert found.value == pytest.approx(sum(second) / 5 - sum(first) / 5)
    assert found.p == pytest.approx(oracle.pvalue)
    interval = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_nothing_is_certain_of_items_that_belong_together() -> None:
    sides = [[result([value] * 3, cluster=["one text"] * 3)] for value in (0.1, 0.9)]
    found = pairing.difference(sides[0], sides[1], "m")
    assert found is not None
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1.0)


def test_right_and_wrong_is_mcnemars_exact_test() -> None:
    first, second = [1.0] * 9 + [0.0] * 6, [1.0] * 4 + [0.0] * 5 + [1.0] + [0.0] * 5
    found = pairing.difference([result(first)], [result(second)], "m")
    assert found is not None
    assert found.p == pytest.approx(stats.binomtest(1, 6).pvalue)
    assert found.p == pytest.approx(intervals.paired_difference(first, second).p)


def test_a_ratio_weighs_items_by_their_whole() -> None:
    # 12 bits in 8 bytes against 10 bits in the same 8 bytes.
    first, second = [[4.0, 2.0], [8.0, 6.0]], [[4.0, 2.0], [6.0, 6.0]]
    found = pairing.difference([result(first)], [result(second)], "m")
    assert found is not None
    assert found.value == pytest.approx(10 / 8 - 12 / 8)
    # Residuals of the difference: (0, -2) + 1/4 (2, 6) = (0.5, -0.5), over 8; variance 2 x 0.5 / 64 / 1.
    half = 12.706 * (2 * 0.5 / 64) ** 0.5
    assert found.high - found.value == pytest.approx(half, rel=1e-4)


def test_order_does_not_matter_but_other_items_do() -> None:
    first = result([0.0, 1.0, 0.5], ["x", "y", "z"])
    second = result([1.0, 1.0, 0.0], ["y", "z", "x"])
    found = pairing.difference([first], [second], "m")
    again = pairing.difference([first], [result([0.0, 1.0, 1.0], ["x", "y", "z"])], "m")
    assert found == again
    assert pairing.difference([first], [result([0.0, 1.0, 1.0], ["x", "y", "other"])], "m") is None


def test_items_of_a_cluster_are_one_observation() -> None:
    first, second = [0.0, 0.2, 0.1, 0.4], [0.5, 0.3, 0.1, 0.3]
    twice = pairing.difference(
        [result(first * 2, cluster=list("abcd") * 2)], [result(second * 2, cluster=list("abcd") * 2)], "m"
    )
    once = pairing.difference([result(first)], [result(second)], "m")
    assert twice is not None
    assert once is not None
    assert twice.p == pytest.approx(once.p)


def test_a_score_over_sets_is_their_unweighted_mean() -> None:
    sets = ["a", "a", "a", "b"]
    found = pairing.difference([result([0.0] * 4, sets=sets)], [result([1.0, 0, 0, 1.0], sets=sets)], "m")
    assert found is not None
    assert found.value == pytest.approx((1 / 3 + 1) / 2)


def test_the_error_over_sets_is_that_of_each_sets_own_paired_test() -> None:
    first = {"a": [0.1, 0.5, 0.9], "b": [0.3, 0.2, 0.8, 0.4]}
    second = {"a": [0.4, 0.4, 1.2], "b": [0.9, 0.1, 0.8, 0.6]}
    sets = [name for name, values in first.items() for _ in values]
    sides = [[result([v for values in side.values() for v in values], sets=sets)] for side in (first, second)]
    found = pairing.difference(sides[0], sides[1], "m")
    errors = [(stats.sem([y - x for x, y in zip(first[s], second[s], strict=True)]), len(first[s]) - 1) for s in "ab"]
    variance = sum(error**2 for error, _ in errors)
    freedom = variance**2 / sum(error**4 / degrees for error, degrees in errors)
    assert found is not None
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * variance**0.5 / 2)


def test_nothing_is_known_of_the_noise_of_sets_of_one_item() -> None:
    sets = ["a", "b", "b"]
    found = pairing.difference([result([0.1] * 3, sets=sets)], [result([0.9] * 3, sets=sets)], "m")
    assert found is not None
    assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1.0)


def test_right_and_wrong_over_several_sets_is_no_mcnemars_test() -> None:
    sets = ["a"] * 3 + ["b"] * 3
    found = pairing.difference([result([0.0] * 6, sets=sets)], [result([1.0, 0, 0, 1.0, 0, 0], sets=sets)], "m")
    assert found is not None
    assert found.p != pytest.approx(stats.binomtest(0, 2).pvalue)


def test_items_that_lack_a_metric_are_left_out() -> None:
    found = pairing.difference([result([0.0, 1.0, 0.5])], [result([0.5, 1.5, 1.5])], "m")
    sides = [result([*values, 9.0]) for values in ([0.0, 1.0, 0.5], [0.5, 1.5, 1.5])]
    for side, value in zip(sides, (0.5, 3.5 / 3), strict=True):
        side["items"]["values"]["m"][3] = None
        side["metrics"]["m"]["value"] = value
    assert pairing.difference([sides[0]], [sides[1]], "m") == found


def test_the_spread_of_seeds_is_part_of_the_error() -> None:
    # No noise of items; seeds at 0.1 and 0.3: standard deviation 0.1414, of the mean 0.1, one degree of freedom.
    seeds = [result([0.1] * 9), result([0.3] * 9)]
    found = pairing.difference([result([0.0] * 9)], seeds, "m")
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(12.706 * 0.1, rel=1e-4)


@pytest.fixture
def runs(tmp_path: Path, tokenizer: TextTokenizer, make_model: Callable[..., Path]) -> list[str]:
    """Two runs: one good model, and one whose weights are spoilt."""
    from safetensors.torch import load_file, save_file

    names = []
    for name in ("base", "chat"):
        folder = make_model(tmp_path / name / "model", tokenizer)
        (tmp_path / name / "lineage.json").write_text('{"parents": []}', encoding="utf-8")
        if name == "chat":
            state = load_file(folder / "model.safetensors")
            save_file({key: value * 0.9 for key, value in state.items()}, folder / "model.safetensors")
        names.append(str(tmp_path / name))
    return names


def invoke(*arguments: str) -> dict[str, Any]:
    """The `--json` object of a comparison."""
    done = CliRunner().invoke(cli, ["eval", "compare", *arguments, "--device", "cpu", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.strip().split("\n")[-1]))


def test_the_command_measures_what_is_missing_and_then_reads_it(runs: list[str], tmp_path: Path) -> None:
    first = invoke(*runs, "--task", TASK, "--limit", "8", "--out", str(tmp_path / "table.md"))
    models = [line["model"] for line in first["lines"] if line["metric"] == "accuracy"]
    assert models == runs
    (file,) = (Path(runs[1]) / "eval").glob("*.json")
    written = file.stat().st_mtime_ns
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| task " in table
    assert "worse than" in table
    (Path(runs[0]) / "eval" / next((Path(runs[0]) / "eval").glob("*.json")).name).unlink()
    # Without --task: what was measured before, of any of the models.
    assert invoke(*runs)["lines"] == first["lines"]
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["folder", "notes.md"])
def test_what_is_there_is_not_overwritten(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.md").write_text("mine", encoding="utf-8")
    assert run(["eval", "compare", *runs, "--task", TASK, "--limit=2", "--out", str(tmp_path / name)]) == 1
    told = capsys.readouterr().err
    assert f"{name}: exists and is no comparison of these models; choose another --out" in told
    assert (tmp_path / "notes.md").read_text(encoding="utf-8") == "mine"
    for _ in range(2):  # its own is written anew
        invoke(*runs, "--task", TASK, "--limit", "2", "--out", str(tmp_path / "new.md"))


def test_the_noise_of_items_is_half_of_their_interval() -> None:
    assert compare._line("t", "m", "x", [result([0.0, 1.0])], None).item_noise == 0.5


@pytest.mark.parametrize("limits", [[["--limit=1"], ["--limit=2"], []], [[], ["--limit=2"]]])
def test_of_several_limits_the_widest_is_compared_again(
    runs: list[str], tmp_path: Path, limits: list[list[str]]
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"sentence_good": "a b", "sentence_bad": "b a"}\n' * 3)
    (tmp_path / "mine.yaml").write_text(f"kind: minimal_pairs\ndata: [{rows}]\n")
    for limit in limits:
        invoke(*runs, "--task", str(tmp_path / "mine.yaml"), *limit)
    assert {line["n"] for line in invoke(*runs)["lines"]} == {3}


def test_a_limit_holds_for_what_was_measured_before(runs: list[str]) -> None:
    few = invoke(*runs, "--task", TASK, "--limit", "2")["lines"]
    invoke(*runs, "--task", TASK, "--limit", "3")
    assert invoke(*runs, "--limit", "2")["lines"] == few


def test_only_measurements_of_these_weights_in_this_number_format_count(runs: list[str], tmp_path: Path) -> None:
    invoke(*runs, "--task", TASK, "--limit", "2")
    settings = CompareConfig(models=runs, device="cpu")

    def known(dtype: str) -> int:
        subjects = [compare.Subject.open(name, "cpu", dtype, 0) for name in runs]
        return len(compare._measured_before(settings.model_copy(update={"dtype": dtype}), subjects))

    assert (known("float32"), known("bfloat16")) == (1, 0)
    for name in runs:
        config = Path(name) / "model" / "config.json"
        config.write_text(config.read_text() + "\n")
    assert known("float32") == 0


def test_windows_of_different_texts_are_not_paired() -> None:
    def of(text: str, kind: str = "own_text") -> dict[str, Any]:
        return result([1.0, 2.0, 4.0]) | {"model": {"text": text}, "config": {"kind": kind}}

    for first, second, is_paired in [
        (of("a"), of("a"), True),
        (of("a"), of("b"), False),
        (of("a", "answers"), of("b", "answers"), True),
    ]:
        line = compare._line("t", "m", "x", [second], [first])
        assert (line.difference is not None) == is_paired


def test_seeds_are_one_model_with_a_noise_of_its_own(
    runs: list[str], tmp_path: Path, tokenizer: TextTokenizer, make_model: Callable[..., Path]
) -> None:
    several = tmp_path / "several"
    several.mkdir()
    (several / "seeds.json").write_text('{"seeds": [0, 1]}', encoding="utf-8")
    for seed, source in enumerate(runs):
        Path(source).rename(several / f"seed-{seed}")
    one = make_model(tmp_path / "one" / "model", tokenizer).parent
    found = invoke(str(one), str(several), "--task", TASK, "--limit", "8")
    lines = {line["model"]: line for line in found["lines"] if line["metric"] == "accuracy"}
    assert lines[str(one)]["seed_noise"] is None
    seeds = invoke(*(str(several / f"seed-{seed}") for seed in (0, 1)), "--task", TASK, "--limit", "8")
    values = [line["value"] for line in seeds["lines"] if line["metric"] == "accuracy"]
    assert lines[str(several)]["seed_noise"] == pytest.approx(statistics.stdev(values))
    assert lines[str(several)]["value"] == pytest.approx(statistics.fmean(values))


def test_verdicts_know_which_way_is_better() -> None:
    lines = [
        compare.Line("t", metric, "b", 1.0, None, None, 9, intervals.Difference(change, 0, 0, 9, 1e-9))
        for metric, change in [("accuracy", 0.1), ("accuracy", -0.1), ("bits_per_byte", 0.1), ("bits_per_byte", -0.1)]
    ]
    assert [line.verdict for line in compare._judged(lines)] == ["better", "worse", "worse", "better"]


def test_p_values_are_corrected_for_their_number() -> None:
    lines = [
        compare.Line("t", "accuracy", str(n), 1.0, None, None, 9, intervals.Difference(-0.1, 0, 0, 9, 0.03))
        for n in range(2)
    ]
    judged = compare._judged([*lines, compare.Line("t", "answer_tokens", "c", 1.0, None, None, 9, lines[0].difference)])
    assert [line.p_holm for line in judged] == [0.06, 0.06, None]
    assert {line.verdict for line in judged} == {""}


@pytest.mark.parametrize("models", [["a"], ["a", "a"]])
def test_a_model_can_not_be_compared_with_itself(models: list[str]) -> None:
    with pytest.raises(ConfigError, match="give two different models or more"):
        compare.run(CompareConfig(models=models))
