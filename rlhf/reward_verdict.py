"""What a run of `fledge rlhf reward` says of itself: numbers, pictures and summary, from its test pairs alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.intervals import Told, as_json, told
from finetune import verdict
from fledge import console, plots
from fledge.data.preferences import Pair
from fledge.rundir import RunFolder
from rlhf import agreement
from rlhf.agreement import MATCHED

PREDICTIONS = "predictions.jsonl"
SHOWN = ("accuracy", "length_matched", "length_balanced")
NUM_MISTAKES = 5


def give(
    folder: RunFolder,
    pairs: Sequence[Pair],
    margin_N: np.ndarray,
    baselines: dict[str, np.ndarray],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Draw the curve, write summary.md, and return the `--json` object.

    Args:
        margin_N: by how much the chosen answer's reward is higher.
        baselines: the same of each baseline.
        facts: about data and training.
    """
    margins = {"model": margin_N, **baselines}
    found = {name: agreement.agreement(pairs, one_N) for name, one_N in margins.items()}
    best = max(baselines, key=lambda name: found[name].accuracy.value)
    difference = agreement.against(pairs, baselines[best], margin_N)
    error, points = agreement.calibration(margin_N)
    plots.reliability_curve(points, folder.path / "calibration.png")
    known = agreement.ceiling(pairs, margin_N)
    own = found["model"]
    result = {
        **facts,
        "accuracy": own.accuracy.value,
        "test_rows": len(pairs),
        "test_prompts": len({pair.hash for pair in pairs}),
        "intervals": {"accuracy": [own.accuracy.low, own.accuracy.high]},
        "length_matched": as_json(own.length_matched),
        "length_balanced": as_json(own.length_balanced),
        "margin": as_json(agreement.mean_margin(pairs, margin_N)),
        "ece": error,
        "baselines": {
            name: {shown: as_json(getattr(found[name], shown))["value"] for shown in SHOWN} for name in baselines
        },
        "best_baseline": best,
        "difference": as_json(difference),
        "beats_baseline": verdict.beats(as_json(difference)),
        **({"ceiling": known[0], "share_of_ceiling": known[1]} if known else {}),
    }
    table = [[name, *(_interval(as_json(getattr(one, shown))) for shown in SHOWN)] for name, one in found.items()]
    folder.write_summary(_summary(folder, result, table, _mistakes(pairs, margin_N)))
    return result


def sentences(result: dict[str, Any]) -> list[str]:
    """The results, for summary and model card."""
    low, high = result["intervals"]["accuracy"]
    matched, balanced = result["length_matched"], result["length_balanced"]
    lines = [
        f"accuracy {result['accuracy']:.4f} ({low:.4f} to {high:.4f}) on {result['test_rows']} pairs of "
        f"{result['test_prompts']} prompts that were not trained on",
        f"of {matched['n']} pairs whose lengths differ by at most {MATCHED:.0%}: {_interval(matched)}; where longer "
        f"and shorter choices count alike (length alone gets 0.5): {_interval(balanced)}",
        f"mean margin {told(result['margin'])}; expected calibration error of sigmoid(margin) {result['ece']:.4f} "
        f"(temperature {result['temperature']:.3f}, fitted on the validation part, is in the head)",
        verdict.sentence(result["best_baseline"], result["difference"]),
    ]
    if "ceiling" in result:
        lines.append(
            f"the best possible accuracy on these pairs is {result['ceiling']:.4f}; without the luck of the draw the "
            f"model is {result['share_of_ceiling']:.1%} of the way there from chance"
        )
    return lines


def _summary(folder: RunFolder, result: dict[str, Any], table: list[list[str]], mistakes: list[list[str]]) -> str:
    best = f", the weights are those of step {result['best_step']}" if result["best_step"] else ""
    facts = [
        f"{result['train_pairs']} pairs to train on, {result['validation_pairs']} to validate; "
        f"{result['duplicates']} stand twice, {result['rejects']} can't be used",
        f"{result['steps']} steps{best}",
    ]
    if result["cut"]:
        facts.append(f"{result['cut']} answers with their prompts are longer than the context: beginnings left out")
    parts = [f"# {folder.path}", "\n".join(f"- {fact}" for fact in facts), "## Test"]
    parts += [console.table(table, ["reward", *SHOWN]), "\n".join(f"- {line}" for line in sentences(result))]
    if mistakes:
        header = ["margin", "row", "prompt", "chosen", "rejected"]
        parts += ["## The most confident mistakes", console.table(mistakes, header)]
    parts.append(f"Curves: {folder.path}/loss.png, {folder.path}/calibration.png; all pairs: {PREDICTIONS}")
    parts.append(f"Score answers: fledge rlhf score {folder.path} --input FILE")
    return "\n\n".join(parts)


def _mistakes(pairs: Sequence[Pair], margin_N: np.ndarray) -> list[list[str]]:
    worst = [n for n in np.argsort(margin_N)[:NUM_MISTAKES] if margin_N[n] < 0]
    return [
        [
            f"{margin_N[n]:.2f}",
            pairs[n].where,
            *map(verdict.one_line, (pairs[n].prompt[-1]["content"], pairs[n].chosen, pairs[n].rejected)),
        ]
        for n in worst
    ]


def _interval(share: Told) -> str:
    return told(share) if share["n"] else "no such pairs"
