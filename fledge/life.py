"""`fledge demo`: the whole life on built-in data, by the same functions that the commands call."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from fledge import commands, config, console, rundir
from fledge.config import CommandConfig
from fledge.errors import RunError, RunFailed
from fledge.metrics_log import whole_lines

VILLAGE = "village:hamlet"
ANSWERS = "village:hamlet/instructions?manners=0.5"  # all right, in the manners of whoever answered
PREFERENCES = "village:hamlet/preferences?temperature=0.25#4000"  # clear choices: more to learn from each
GAP_LIMIT = 0.15  # bits per byte above the floor of who knows the village
BASE_RIGHT_LIMIT = 0.1  # share of facts that a base model may answer: it has not learnt to answer
CHAT_RIGHT_LIMIT = 0.8  # share of facts about villagers whom fine-tuning never asks about
# Of the way from guessing to the best possible agreement with those who choose. Manners and brevity alone come to 0.64;
# that an answer is right a model of four layers hardly learns from pairs (LOG.md, "The hamlet's reward model").
REWARD_SHARE_LIMIT = 0.5
FORGETTING_LIMIT = 0.1  # bits per byte of the stories that PPO may cost


@dataclass(frozen=True)
class Band:
    """One thing that the life must have learnt."""

    name: str  # begins with its stage
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Stage:
    """One step of the life: the config of a command, from the folder that holds all steps."""

    name: str  # its folder, if it makes a run
    settings: Callable[[Path], CommandConfig]
    # From its own result and those of the stages so far, by name.
    bands: Callable[[commands.Result, dict[str, commands.Result]], list[Band]] = lambda result, earlier: []


def life() -> list[Stage]:
    """The stages in order."""
    from eval.config import CompareConfig, ReportConfig
    from eval.config import RunConfig as EvalConfig
    from finetune.config import InstructConfig
    from pretrain.config import PrepareConfig
    from pretrain.config import TrainConfig as PretrainConfig
    from rlhf.config import PpoConfig, RewardConfig
    from tokenizer.config import TrainConfig as TokenizerConfig

    def shipped(config_class: type[CommandConfig], **values: Any) -> CommandConfig:
        file = config.shipped(config_class, "hamlet")
        return config.load(config_class, file, {(name,): value for name, value in values.items()})

    def measured(model: Path) -> CommandConfig:
        return EvalConfig(model=str(model), task=["own_text", "village_questions"])

    return [
        Stage("tokenizer", lambda out: shipped(TokenizerConfig, input=[VILLAGE])),
        Stage(
            "shards",
            lambda out: shipped(PrepareConfig, input=[VILLAGE], tokenizer=str(out / "tokenizer")),
        ),
        Stage("pretrain", lambda out: shipped(PretrainConfig, data=str(out / "shards")), _pretrain_bands),
        Stage("pretrain eval", lambda out: measured(out / "pretrain"), _base_bands),
        Stage(
            "instruct",
            lambda out: shipped(InstructConfig, model=str(out / "pretrain"), data=[ANSWERS]),
        ),
        Stage("instruct eval", lambda out: measured(out / "instruct"), _chat_bands),
        Stage(
            "reward",
            lambda out: shipped(RewardConfig, model=str(out / "instruct"), data=[PREFERENCES]),
            _reward_bands,
        ),
        Stage(
            "ppo",
            lambda out: shipped(
                PpoConfig, model=str(out / "instruct"), reward=str(out / "reward"), gold="village"
            ),
            _ppo_bands,
        ),
        Stage("ppo eval", lambda out: measured(out / "ppo"), _forgetting_bands),
        Stage(
            "compare",
            lambda out: CompareConfig(
                models=[str(out / name) for name in ("pretrain", "instruct", "ppo")],
                task=["own_text", "village_questions"],
            ),
        ),
        Stage("report", lambda out: ReportConfig(runs=[str(out)], out=str(out / "report.html"))),
    ]


def _pretrain_bands(result: commands.Result, earlier: dict[str, commands.Result]) -> list[Band]:
    gap = result["validation_bits_per_byte"] - result["floor_world_bits_per_byte"]
    return [Band("pretrain bits per byte above the village's floor", gap, GAP_LIMIT, 0 <= gap <= GAP_LIMIT)]


def _base_bands(result: commands.Result, earlier: dict[str, commands.Result]) -> list[Band]:
    found, asked = result["results"]["own_text"]["bits_per_byte"], _right_facts(result)
    value, ngram = found["value"], found["baseline"]
    return [
        Band("pretrain bits per byte, below a 5-gram model's", value, ngram, value < ngram),
        Band(
            "pretrain facts answered, before it learns to answer",
            asked,
            BASE_RIGHT_LIMIT,
            asked <= BASE_RIGHT_LIMIT,
        ),
    ]


def _chat_bands(result: commands.Result, earlier: dict[str, commands.Result]) -> list[Band]:
    asked = _right_facts(result)
    return [
        Band(
            "instruct facts answered, of villagers never asked about",
            asked,
            CHAT_RIGHT_LIMIT,
            asked >= CHAT_RIGHT_LIMIT,
        )
    ]


def _reward_bands(result: commands.Result, earlier: dict[str, commands.Result]) -> list[Band]:
    accuracy, length = result["accuracy"], result["baselines"]["length_only"]["accuracy"]
    share = result["share_of_ceiling"]
    return [
        Band(
            "reward agreement, share of the way from guessing to the best possible",
            share,
            REWARD_SHARE_LIMIT,
            share >= REWARD_SHARE_LIMIT,
        ),
        Band("reward agreement, above that of choosing by length", accuracy, length, accuracy > length),
    ]


def _ppo_bands(result: commands.Result, earlier: dict[str, commands.Result]) -> list[Band]:
    lowest = result["gold_reward_gain"]["low"]
    return [Band("ppo gold reward gained, low end of its interval", lowest, 0.0, lowest > 0)]


def _forgetting_bands(result: commands.Result, earlier: dict[str, commands.Result]) -> list[Band]:
    before, after = (
        r["results"]["own_text"]["bits_per_byte"]["value"] for r in (earlier["instruct eval"], result)
    )
    lost = after - before
    return [Band("ppo bits per byte of the stories lost", lost, FORGETTING_LIMIT, lost <= FORGETTING_LIMIT)]


def _right_facts(result: commands.Result) -> float:
    return float(result["results"]["village_questions"]["right_facts"]["value"])


def run(out: Path, stages: list[Stage] | None = None) -> commands.Result:
    """Live the life in a folder; stages that are there already are not done again.

    Args:
        stages: None takes those of `life`.
    Returns:
        the `--json` object of `fledge demo`.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    results: dict[str, commands.Result] = {}
    bands: list[Band] = []
    stages = life() if stages is None else stages
    for number, stage in enumerate(stages, 1):
        console.note(f"\n[{number}/{len(stages)}] {stage.name}")
        path = out / stage.name
        settings = stage.settings(out)
        if not settings.makes_run:
            results[stage.name] = commands.execute(settings)
        elif rundir.is_run(path):
            results[stage.name] = commands.resume(type(settings), path, None, {})
        else:
            results[stage.name] = commands.execute(settings, path)
        bands += stage.bands(results[stage.name], results)
    return {
        "command": "demo",
        "out": str(out),
        "model": results["ppo"]["model"],
        "elapsed_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "bands": [asdict(band) for band in bands],
        "stages": results,
    }


@click.command(help="The whole life on built-in data, on a CPU, in minutes.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="folder of all stages  [default: next runs/demo-<n>]"
)
@click.option("--resume", type=click.Path(path_type=Path), help="continue a demo that was stopped")
@click.option("--json", "as_json", is_flag=True, help="end with one JSON object on stdout")
def demo(out: Path | None, resume: Path | None, as_json: bool) -> None:
    """Run the demo and print its last screen; a missed band is exit code 3."""
    if resume and not resume.is_dir():
        raise RunError(f"{resume}: no such demo; start one with `fledge demo`")
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: exists already; choose another --out, or continue it with --resume {out}")
    result = run(resume or out or rundir.next_free("demo"))
    console.result(json.dumps(result) if as_json else last_screen(result))
    missed = [band for band in result["bands"] if not band["passed"]]
    if missed:
        raise RunFailed("; ".join(f"{b['name']}: {b['value']:.3f}, limit {b['limit']}" for b in missed))


def last_screen(result: commands.Result) -> str:
    """What the demo ends with: the loss against its floors, samples, what to type next."""
    pretrained, out = result["stages"]["pretrain"], result["out"]
    rows = [
        ["this model", f"{pretrained['validation_bits_per_byte']:.3f}"],
        ["floor: knows the grammar, no villager", f"{pretrained['floor_grammar_bits_per_byte']:.3f}"],
        ["floor: knows every villager", f"{pretrained['floor_world_bits_per_byte']:.3f}"],
    ]
    bands = [
        [b["name"], f"{b['value']:.3f}", f"{b['limit']:.3g}", "yes" if b["passed"] else "NO"]
        for b in result["bands"]
    ]
    written = _last_samples(Path(out) / "pretrain", pretrained["steps"])
    answers = _last_samples(Path(out) / "ppo", result["stages"]["ppo"]["steps"])
    return "\n".join(
        [
            "",
            f"A model of {console.format_count(pretrained['parameters'])} parameters has read the hamlet's stories "
            f"({console.format_seconds(result['elapsed_s'])} in all).",
            "",
            console.table(rows, ["held-out stories", "bits per byte"]),
            "",
            console.table(bands, ["band", "value", "limit", "passed"]),
            "",
            *(f"> {s['prompt']}{s['text']}".replace("\n", " ") + "\n" for s in written),
            *(f"> {s['prompt']} -- {s['text']}".replace("\n", " ") for s in answers[-2:]),
            "",
            f"Its life on one page: {out}/report.html",
            "",
            "Next:",
            f"  fledge chat {out}/ppo",
            f'  fledge pretrain sample {out}/pretrain --prompt "It was a" --num-samples 3',
            f"  fledge rlhf compare {out}/ppo --reward village --prompts village:hamlet/instructions:test",
            "  fledge tokenizer train --input 'my-texts/*.txt' --vocab-size 8192 --out runs/tok",
            "  fledge pretrain prepare --input 'my-texts/*.txt' --tokenizer runs/tok --out runs/shards",
            "  fledge pretrain train --config small --data runs/shards --time-budget 10m --out runs/base",
        ]
    )


def _last_samples(run: Path, step: int) -> list[dict[str, Any]]:
    samples = [json.loads(line) for line in whole_lines(run / "samples.jsonl")]
    return [sample for sample in samples if sample["step"] == step]
