"""What runs of PPO, GRPO and DPO say of answers to held-out prompts: numbers, sentences, and a table of the first."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from eval import intervals
from finetune import verdict
from fledge import console
from fledge.rundir import RunFolder
from rlhf.prompts import Asked
from rlhf.rollout import Written

CELL = 160  # characters of a text in a table


def measured(
    asked: Sequence[Asked],
    written: Sequence[Written],
    kls: Sequence[float],
    scores: Sequence[float] | None,
    num_samples: int,
) -> dict[str, Any]:
    """`scores` (of a reward, if there is one), the means `kl`, `stopped_share` and `answer_tokens`, and `samples`."""
    samples: list[dict[str, Any]] = [
        {"prompt": one.messages[-1]["content"], "text": answer.text, "kl": kl}
        for one, answer, kl in zip(asked, written, kls, strict=True)
    ][:num_samples]
    found: dict[str, Any] = {}
    if scores is not None:
        found["scores"] = list(scores)
        samples = [sample | {"reward": score} for sample, score in zip(samples, scores, strict=False)]
    return found | {
        "kl": fmean(kls),
        "stopped_share": fmean(answer.has_stopped for answer in written),
        "answer_tokens": fmean(len(answer.ids) for answer in written),
        "samples": samples,
    }


def compared(stem: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Two models' rewards of the same prompts as `STEM_before`, `STEM_after` and `STEM_gain`."""
    gain = intervals.as_json(intervals.paired_difference(before, after))
    return {f"{stem}_before": fmean(before), f"{stem}_after": fmean(after), f"{stem}_gain": gain}


def gained(what: str, result: dict[str, Any], stem: str = "reward") -> str:
    """By how much a reward of the answers has changed."""
    return (
        f"{what} of {result['held_out']} answers to held-out prompts: {result[f'{stem}_after']:.4g}, "
        f"{result[f'{stem}_before']:.4g} before; difference {intervals.told(result[f'{stem}_gain'], '+.3g')}"
    )


def distance(result: dict[str, Any]) -> str:
    """How far from the parent the answers are, and how long."""
    return (
        f"KL from the parent: {result['kl']:.3f} nats an answer; {result['answer_tokens']:.1f} tokens an answer, "
        f"{result['stopped_share']:.0%} end by themselves"
    )


def write_summary(folder: RunFolder, lines: Sequence[str], samples: Sequence[dict[str, Any]], last: str) -> None:
    """Write summary.md: the results, a table of samples, and what to do with the model."""
    parts = [f"# {folder.path}", "\n".join(f"- {line}" for line in lines)]
    if samples:
        rewards = ["reward"] if "reward" in samples[0] else []
        rows = [
            [
                *(verdict.one_line(sample[name], CELL) for name in ("prompt", "text")),
                *(f"{sample[name]:.3g}" for name in rewards),
                f"{sample['kl']:.2f}",
            ]
            for sample in samples
        ]
        parts += ["## Answers", console.table(rows, ["prompt", "answer", *rewards, "KL"])]
    folder.write_summary("\n\n".join([*parts, last]))
