"""What the demo shows of itself: where it is, and at the end what was learnt and what to type next."""

import json
from pathlib import Path
from typing import Any

from fledge import console
from fledge.commands import Result
from fledge.metrics_log import whole_lines

# The next evening; figures from LOG.md ("What a base of ten million knows"), on two CPU cores.
EVENING = """\
The next evening, a model of ten million parameters on books: an hour on two cores, about 1.56 bits per byte, and it
goes on from "Once upon a time" with " and that, in a few minutes, the tradesman stood in a comic grave and waited.":
  fledge tokenizer train --input 'books/*.txt' --vocab-size 8192 --out runs/tok
  fledge pretrain prepare --input 'books/*.txt' --tokenizer runs/tok --out runs/books
  fledge pretrain train --config small --data runs/books --time-budget 1h --out runs/base
With a network: fledge chat distilgpt2"""


def line_of(names: list[str], current: str) -> str:
    """All stages in a line, the current one marked."""
    return " ".join(f"<{name}>" if name == current else name.replace(" ", "-") for name in names)


def last(result: Result) -> str:
    """What the demo ends with: the loss against its floors, the bands, samples, what to type next."""
    stages, out = result["stages"], Path(result["out"])
    lines = [""]
    if "pretrain" in stages:
        lines += [*_learnt(stages["pretrain"], result["elapsed_s"]), ""]
    if result["bands"]:
        rows = [
            [b["name"], f"{b['value']:.3f}", f"{b['limit']:.3g}", "yes" if b["passed"] else "NO"]
            for b in result["bands"]
        ]
        lines += [console.table(rows, ["band", "value", "limit", "passed"]), ""]
    if "pretrain" in stages:
        written = _samples(out / "pretrain", stages["pretrain"]["steps"])
        lines += [f"> {s['prompt']}{s['text']}".replace("\n", " ") + "\n" for s in written]
    if "report" not in stages:
        return "\n".join([*lines, f"It goes on with: fledge demo --resume {out}"])
    answers = _samples(out / "ppo", stages["ppo"]["steps"])
    lines += [f"> {s['prompt']} -- {s['text']}".replace("\n", " ") for s in answers[-2:]]
    lines += ["", f"Its life on one page: {out}/report.html", "", "Next:"]
    lines += [
        f"  fledge chat {out}/ppo",
        f'  fledge finetune predict {out}/classify --text "Hello, this is Lena. Gerda lent you the shirt."',
        f'  fledge pretrain sample {out}/pretrain --prompt "It was a" --num-samples 3',
        f"  fledge rlhf compare {out}/ppo --reward village --prompts village:hamlet/instructions:test",
        "",
        EVENING,
    ]
    return "\n".join(lines)


def _learnt(pretrained: Result, elapsed_s: float) -> list[str]:
    rows = [["this model", f"{pretrained['validation_bits_per_byte']:.3f}"]]
    for what, name in (("the grammar, no villager", "grammar"), ("every villager", "world")):
        if f"floor_{name}_bits_per_byte" in pretrained:
            rows.append([f"floor: knows {what}", f"{pretrained[f'floor_{name}_bits_per_byte']:.3f}"])
    size, spent = console.format_count(pretrained["parameters"]), console.format_seconds(elapsed_s)
    return [
        f"A model of {size} parameters has grown up ({spent} in all).",
        "",
        console.table(rows, ["held-out text", "bits per byte"]),
    ]


def _samples(run: Path, step: int) -> list[dict[str, Any]]:
    samples = [json.loads(line) for line in whole_lines(run / "samples.jsonl")]
    return [sample for sample in samples if sample["step"] == step]
