"""`fledge demo`: the whole life on built-in data or one's own, by the same functions that the commands call."""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from fledge import atomic, bands, commands, config, console, device, life_screen, rundir
from fledge.bands import Band
from fledge.config import CommandConfig
from fledge.errors import DataError, Interrupted, RunError, RunFailed

WISH = "demo.json"  # in the demo's folder: what it was asked for
VILLAGE = "village:hamlet"
# All right, in the manners of whoever answered; enough that none is asked twice, else it learns some by heart.
ANSWERS = "village:hamlet/instructions?manners=0.5#8000"
MESSAGES = "village:hamlet/messages?comparisons=0#4000"
# Wrong answers evade the question: wrong facts, told like right ones, no reward model of this size can see (LOG.md).
PREFERENCES = "village:hamlet/preferences?temperature=0.5&evasion=1#6400"
# What a person may put beside the text of --data, by the file's name without its endings; stands for the village's.
OWN_FILES = ("conversations", "labelled", "preferences")
# Changes of the shipped presets: by stage, then option.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {},
    # As the shipped presets for 7 M have it.
    "medium": {
        "pretrain": {
            "model.layers": 6,
            "model.width": 256,
            "model.heads": 4,
            "optim.learning_rate": 0.007,
            "run.max_steps": 2400,
        },
        "instruct": {"optim.learning_rate": 0.001},
        "classify": {"optim.learning_rate": 0.0005},
        "reward": {"optim.learning_rate": 0.001},
        "ppo": {"optim.learning_rate": 1e-4, "optim.critic_learning_rate": 5e-4},
    },
}
MIN_BUDGET_S = 10  # less leaves some stage without a step or a row
USUAL_S = {"pretrain": 175.0, "others": 185.0}  # of size small, on two CPU cores


@dataclass(frozen=True)
class Wish:
    """What a life is asked for."""

    size: str = "small"
    data: str | None = None  # a folder of one's own text, with OWN_FILES if there are any
    time_budget: str | None = None


@dataclass(frozen=True)
class Stage:
    """One step of the life."""

    name: str  # its folder, if it makes a run
    settings: CommandConfig
    judge: bands.Judge = bands.none


def life(wish: Wish, out: Path) -> list[Stage]:
    """The stages in order, in a folder for all of them that need not be there yet.

    Raises:
        DataError: the folder of one's own text has none.
    """
    from eval.config import CompareConfig, ReportConfig
    from eval.config import RunConfig as EvalConfig
    from finetune.config import ClassifyConfig, InstructConfig
    from pretrain.config import PrepareConfig
    from pretrain.config import TrainConfig as PretrainConfig
    from rlhf.config import PpoConfig, RewardConfig
    from tokenizer.config import TrainConfig as TokenizerConfig

    text, own = _own(Path(wish.data)) if wish.data else ([], {})
    budgeted = _budgeted(wish)

    def shipped(stage: str, config_class: type[CommandConfig], **values: Any) -> CommandConfig:
        file = config.shipped(config_class, "hamlet")
        settings = config.load(config_class, file, {(name,): value for name, value in values.items()})
        settings = config.with_values(settings, SIZES[wish.size].get(stage, {}))
        return config.with_values(settings, budgeted(stage, settings))

    base, chat = str(out / "pretrain"), str(out / "instruct")
    asked: dict[str, Any] = {"task": ["own_text", "village_questions"]}
    read = [VILLAGE, *text]
    conversations = own.get("conversations", ANSWERS)
    prompts = {"prompts": [own["conversations"]]} if "conversations" in own else {}
    is_villages = not {"conversations", "preferences"} & set(own)
    gold = {"gold": "village"} if is_villages else {}

    def judged(judge: bands.Judge, needs: str = "") -> bands.Judge:
        """The village's limits hold where its data alone was learnt from."""
        return judge if not text and needs not in own else bands.none

    tokenizer = shipped("tokenizer", TokenizerConfig, input=read)
    shards = shipped("shards", PrepareConfig, input=read, tokenizer=str(out / "tokenizer"))
    pretrain = shipped("pretrain", PretrainConfig, data=str(out / "shards"))
    instruct = shipped("instruct", InstructConfig, model=base, data=[conversations])
    classify = shipped("classify", ClassifyConfig, model=base, data=[own.get("labelled", MESSAGES)])
    reward = shipped("reward", RewardConfig, model=chat, data=[own.get("preferences", PREFERENCES)])
    ppo = shipped("ppo", PpoConfig, model=chat, reward=str(out / "reward"), **gold, **prompts)
    compare = CompareConfig(models=[base, chat, str(out / "ppo")], **asked)
    return [
        Stage("tokenizer", tokenizer),
        Stage("shards", shards),
        Stage("pretrain", pretrain, judged(bands.floor)),
        Stage("pretrain eval", EvalConfig(model=base, **asked), bands.both(bands.ngram, judged(bands.silent))),
        Stage("instruct", instruct),
        Stage("instruct eval", EvalConfig(model=chat, **asked), judged(bands.answers, "conversations")),
        Stage("classify", classify, judged(bands.spam, "labelled")),
        Stage("reward", reward, bands.above_length if text else judged(bands.agreement, "preferences")),
        Stage("ppo", ppo, judged(bands.gold) if is_villages else bands.gain),
        Stage("ppo eval", EvalConfig(model=str(out / "ppo"), **asked), bands.forgetting),
        Stage("compare", compare),
        Stage("report", ReportConfig(runs=[str(out)], out=str(out / "report.html"))),
    ]


def _own(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The files of text in a folder, and those of OWN_FILES by name; read once, so that errors come at the start.

    Raises:
        DataError: no such folder, no text in it, or rows that can't be used.
    """
    from fledge.data import conversations, labelled, preferences
    from fledge.data.sources import expand

    if not folder.is_dir():
        raise DataError(f"--data {folder}: no such folder; name one that holds your text")
    found = expand([folder])
    beside = {s.path.name.split(".")[0]: s.name for s in reversed(found) if s.path.parent == folder}
    own = {name: beside[name] for name in OWN_FILES if name in beside}
    text = [source.name for source in found if source.name not in own.values()]
    if not text:
        raise DataError(f"--data {folder}: only {', '.join(own)} there, no text to pretrain on")
    if "conversations" in own:
        conversations.read([own["conversations"]], held_out_share=0.1)
    if "labelled" in own:
        labelled.read([own["labelled"]])
    if "preferences" in own:
        preferences.read([own["preferences"]], held_out_share=0.1)
    return text, own


def _budgeted(wish: Wish) -> Callable[[str, CommandConfig], dict[str, Any]]:
    """Shares of a time budget: pretraining has what the others usually leave; all have less of a short one."""
    if wish.time_budget is None:
        return lambda stage, settings: {}
    budget_s = config.parse_duration(wish.time_budget)
    share = min(1.0, budget_s / sum(USUAL_S.values()))

    def values(stage: str, settings: CommandConfig) -> dict[str, Any]:
        if stage == "pretrain":
            return {"time_budget": f"{budget_s - share * USUAL_S['others']:.0f}s"}
        if stage in ("instruct", "ppo"):
            return {"run.max_steps": max(1, round(share * settings.run.max_steps))}  # type: ignore[attr-defined]
        if stage in ("classify", "reward"):
            found = [re.sub(r"#(\d+)$", lambda n: f"#{round(share * int(n[1]))}", d) for d in settings.data]  # type: ignore[attr-defined]
            return {"data": found}
        return {}

    return values


def run(out: Path, stages: list[Stage], last: str | None = None) -> commands.Result:
    """Live the life in a folder up to a stage; stages that are there already are not done again.

    Returns:
        the `--json` object of `fledge demo`.
    """
    from fledge import engine

    wall, cpu = time.perf_counter(), time.process_time()
    results: dict[str, commands.Result] = {}
    found: list[Band] = []
    names = [stage.name for stage in stages]
    stages = stages[: names.index(last) + 1] if last else stages
    usual_s = {name: USUAL_S.get(name, USUAL_S["others"] / (len(names) - 1)) for name in names}
    share = 100 / sum(usual_s[stage.name] for stage in stages)
    with console.progress("life", 100, "%") as bar:
        for number, stage in enumerate(stages, 1):
            bar.advance(0, stage.name)
            console.note(f"\n[{number}/{len(stages)}] {life_screen.line_of(names, stage.name)}")
            path, settings = out / stage.name, stage.settings
            if not settings.makes_run:
                results[stage.name] = commands.execute(settings)
            elif rundir.is_run(path):
                results[stage.name] = commands.resume(type(settings), path, None, {})
            else:
                results[stage.name] = commands.execute(settings, path)
            found += stage.judge(results[stage.name], results)
            bar.advance(share * usual_s[stage.name])
            engine.give_back_memory()
    models = [result["model"] for result in results.values() if result.get("model")]
    return {
        "command": "demo",
        "out": str(out),
        "model": models[-1] if models else None,
        "elapsed_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "bands": [asdict(band) for band in found],
        "stages": results,
    }


@click.command(help="The whole life on built-in data or your own, on a CPU, in minutes.")
@click.option("--out", type=click.Path(path_type=Path), help="folder of all stages  [default: next runs/demo-<n>]")
@click.option("--resume", type=click.Path(path_type=Path), help="continue a demo that was stopped")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="a folder of your own text to read beside the built-in stories; what it has of conversations.jsonl, "
    "labelled.csv and preferences.jsonl takes the place of the built-in ones",
)
@click.option("--size", type=click.Choice([*SIZES]), help="of the model  [default: medium on a GPU, else small]")
@click.option("--time-budget", help="for all stages, such as 30m  [default: as long as it takes]")
@click.option("--stage", "last", help="stop after this stage")
@click.option("--json", "as_json", is_flag=True, help="end with one JSON object on stdout")
def demo(
    out: Path | None,
    resume: Path | None,
    data: Path | None,
    size: str | None,
    time_budget: str | None,
    last: str | None,
    as_json: bool,
) -> None:
    """Run the demo and print its last screen; a missed band is exit code 3."""
    folder = resume or out or rundir.next_free("demo")
    if resume:
        wish = _wish_of(resume, bool(data or size or time_budget))
    else:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder}: exists already; choose another --out, or continue it with --resume {folder}")
        chosen = size or ("medium" if device.resolve_device("auto", "") == "cuda" else "small")
        wish = Wish(chosen, str(data.absolute()) if data else None, _checked(time_budget))
    stages = life(wish, folder)  # what is wrong with the wish is said before anything is made
    names = [stage.name for stage in stages]
    if last and last not in names:
        raise RunError(f"--stage {last}: no such stage; there are {', '.join(names)}")
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_file(folder / WISH, json.dumps(asdict(wish)))
    try:
        result = run(folder, stages, last)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"stopped; continue with fledge demo --resume {folder}") from None
    console.result(json.dumps(result) if as_json else life_screen.last(result))
    missed = [band for band in result["bands"] if not band["passed"]]
    if missed:
        raise RunFailed("; ".join(f"{b['name']}: {b['value']:.3f}, limit {b['limit']}" for b in missed))
    if "report" in result["stages"] and not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        from finetune.config import ChatConfig

        commands.execute(ChatConfig(model=str(folder / "ppo")))


def _wish_of(folder: Path, is_asked_anew: bool) -> Wish:
    """What a demo that is continued was asked for."""
    if not (folder / WISH).is_file():
        raise RunError(f"{folder}: no such demo; start one with `fledge demo`")
    if is_asked_anew:
        raise RunError(f"{folder}: goes on as it was begun; leave --data, --size and --time-budget away")
    return Wish(**json.loads((folder / WISH).read_text(encoding="utf-8")))


def _checked(time_budget: str | None) -> str | None:
    if time_budget is not None:
        try:
            if config.parse_duration(time_budget) < MIN_BUDGET_S:
                raise ValueError(f"{time_budget} is too short for a life; give {MIN_BUDGET_S}s or more")
        except ValueError as error:
            raise RunError(f"--time-budget: {error}") from None
    return time_budget
