"""A real life on one GPU: books, stories and web pages to a pretrained, instructed and rewarded model with a report.

`python -m bench.gpu_life pack DATA PACK`   the data that travels, recompressed, at most --limit-mib
`python -m bench.gpu_life run DATA OUT`     the life, or what is left of it; stops after --minutes: call it again
`python -m bench.gpu_life sweep DATA OUT`   weight decay x dropout on a small model, cell by cell, likewise

DATA: the folder of data sets, or what `pack` made of it. --tiny: minutes on a CPU, with the smallest sets.
Not measured on a GPU yet.
"""

import bz2
import contextlib
import gzip
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fledge import atomic, config, console, life
from fledge.config import CommandConfig
from fledge.errors import DataError, FledgeError
from fledge.life import Stage

VARIANT = "books-100m"
VALIDATION = "classic_books/valid.jsonl.gz"
TEXT = ["tinystories_sample/train.txt", "web_sample/c4_demo.jsonl", "web_sample/wiki_demo.txt"]
INSTRUCTIONS = [
    *("instruction_1100/instruction-data.json", "alpaca_en_1k/alpaca_en_demo.json"),
    *("dolly_hhrlhf_1k/train.jsonl.gz", "p3_multitask/train.jsonl.gz"),
    *("gpteacher/roleplay-instruct.json.gz", "gpteacher/codegen-instruct.json.gz"),
]
PAIRS = "alpaca_eval_preferences/pairs.jsonl.gz"
EVALUATION = ["blimp", "eval_tasks"]
# What of these --tiny takes.
TINY_TEXT, TINY_INSTRUCTIONS = TEXT[:1], INSTRUCTIONS[:1]
TINY_PAIRS = "instruction_1100/instruction-data-with-preference.json"
PACKED = ".bz2"  # of the standard library's compressors the smallest on English text, and 20 times as fast as xz

DECAYS, DROPOUTS = (0.1, 0.4, 1.6), (0.0, 0.1)


def pack(data: Path, packed: Path, limit_mib: float) -> None:
    """Recompress every set that the life needs, and as many of the books as then fit, in order of their numbers."""
    needed = [VALIDATION, *TEXT, *INSTRUCTIONS, PAIRS, TINY_PAIRS]
    needed += [str(f.relative_to(data)) for name in EVALUATION for f in sorted((data / name).glob("*.jsonl.gz"))]
    books = sorted(str(file.relative_to(data)) for file in data.glob("classic_books/train-*.jsonl.gz"))
    used = taken = 0
    for name in [*needed, *books]:
        content = Path(found(data, [name])[0]).read_bytes()
        content = bz2.compress(gzip.decompress(content) if name.endswith(".gz") else content)
        if used + len(content) > limit_mib * 2**20:
            if name in needed:
                raise DataError(f"--limit-mib {limit_mib:g}: too few for what must travel; {name} is left over")
            break
        used += len(content)
        taken += name in books
        target = packed / (name + PACKED)
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_file(target, content)
        console.note(f"{target}: {len(content) / 2**20:.2f} MiB, {used / 2**20:.1f} in all")
    console.result(f"{packed}: {used / 2**20:.1f} MiB, {taken} of {len(books)} shards of books")


def unpacked(data: Path, out: Path) -> Path:
    """The folder with the sets as they were; those that `pack` made are unpacked into OUT/data once."""
    files = sorted(data.rglob("*" + PACKED))
    if not files:
        return data
    for file in files:
        target = out / "data" / file.relative_to(data).with_suffix("")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name("." + target.name)
            is_gzip = target.suffix == ".gz"
            with bz2.open(file) as source, gzip.open(partial, "wb", 1) if is_gzip else partial.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            partial.rename(target)
    return out / "data"


def found(data: Path, names: list[str]) -> list[str]:
    """Paths of sets that must be there."""
    missing = [name for name in names if not (data / name).is_file()]
    if missing:
        raise DataError(f"{data / missing[0]}: missing; DATA is the folder that holds {missing[0]}")
    return [str(data / name) for name in names]


def prepared(data: Path, out: Path, tiny: bool) -> list[Stage]:
    """Tokenizer and token shards."""
    from pretrain.config import PrepareConfig
    from tokenizer.config import TrainConfig as TokenizerConfig

    books = [str(file) for file in sorted(data.glob("classic_books/train-*.jsonl.gz"))]
    text = found(data, TINY_TEXT) if tiny else [*books, *found(data, TEXT)]
    held_out = {} if tiny else {"validation_input": found(data, [VALIDATION])}
    shards = shipped(PrepareConfig, tiny, input=text, tokenizer=str(out / "tokenizer"), **held_out)
    return [Stage("tokenizer", shipped(TokenizerConfig, tiny, input=text)), Stage("shards", shards)]


def stages(data: Path, out: Path, tiny: bool) -> list[Stage]:
    """The life in order."""
    from eval.config import CompareConfig, ReportConfig
    from finetune.config import InstructConfig
    from pretrain.config import TrainConfig
    from rlhf.config import PpoConfig, RewardConfig

    instructions = found(data, TINY_INSTRUCTIONS if tiny else INSTRUCTIONS)
    pairs = found(data, [TINY_PAIRS if tiny else PAIRS])
    short = {"run.max_steps": 4} if tiny else {}
    base, chat, reward, ppo = (str(out / name) for name in ("pretrain", "instruct", "reward", "ppo"))
    measured: dict[str, Any] = {"task": ["own_text"], "limit": 20} if tiny else {"suite": "base", "data": [str(data)]}
    rewarded = {"model": chat, "reward": reward, "prompts": instructions}
    return [
        *prepared(data, out, tiny),
        Stage("pretrain", shipped(TrainConfig, tiny, data=str(out / "shards"), **short)),
        Stage("instruct", shipped(InstructConfig, tiny, model=base, data=instructions, **short)),
        Stage("reward", shipped(RewardConfig, tiny, model=chat, data=pairs, **short)),
        Stage("ppo", shipped(PpoConfig, tiny, **rewarded, **short)),
        Stage("compare", CompareConfig(models=[base, chat, ppo], **measured)),
        Stage("report", ReportConfig(runs=[str(out)], out=str(out / "report.html"))),
    ]


def sweep(data: Path, out: Path, tiny: bool) -> list[list[str]]:
    """Each cell a run of the small model for a minute; rows of weight decay, dropout, bits per byte."""
    from pretrain.config import TrainConfig

    small = {"model.layers": 6, "model.width": 384, "model.heads": 6, "time_budget": "60s"}
    small |= {"optim.learning_rate": 0.006, "run.checkpoint_every": 500, "samples.every": 0}
    changed = {"run.max_steps": 4} if tiny else small
    cells = {f"decay-{decay}-dropout-{dropout}": (decay, dropout) for decay in DECAYS for dropout in DROPOUTS}

    trained = [
        Stage(
            name,
            shipped(
                TrainConfig,
                tiny,
                data=str(out / "shards"),
                **{"optim.weight_decay": decay, "model.dropout": dropout},
                **changed,
            ),
        )
        for name, (decay, dropout) in cells.items()
    ]
    results = life.run(out, [*prepared(data, out, tiny), *trained])["stages"]
    return [
        [f"{decay}", f"{dropout}", f"{results[name]['validation_bits_per_byte']:.4f}"]
        for name, (decay, dropout) in cells.items()
    ]


def shipped(config_class: type[CommandConfig], tiny: bool, **values: Any) -> CommandConfig:
    """The shipped config of a command with some values, by dotted name."""
    file = config.shipped(config_class, "tiny" if tiny else VARIANT)
    return config.load(config_class, file, {tuple(name.split(".")): v for name, v in values.items()})


@contextlib.contextmanager
def stopping_after(minutes: float) -> Iterator[None]:
    """What the terminal's Ctrl-C does, after some time: loops write a checkpoint first."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


@click.group(help=__doc__)
def cli() -> None:
    """See the module's docstring."""


_data = click.argument("data", type=click.Path(path_type=Path))
_out = click.argument("out", type=click.Path(path_type=Path))
_tiny = click.option("--tiny", is_flag=True, help="minutes on a CPU; the numbers mean nothing")
_minutes = click.option("--minutes", default=8.3, help="until this call stops, to be called again")


@cli.command("pack", help="Recompress the data that travels.")
@_data
@_out
@click.option("--limit-mib", default=52.0, help="of all files; wheels and code travel beside them")
def _pack(data: Path, out: Path, limit_mib: float) -> None:
    pack(data, out, limit_mib)


@cli.command("run", help="Live the life, or go on with it.")
@_data
@_out
@_tiny
@_minutes
def _run(data: Path, out: Path, tiny: bool, minutes: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with stopping_after(minutes):
        life.run(out, stages(unpacked(data, out), out, tiny))
    console.result(f"{out / 'ppo'}; the page is {out / 'report.html'}")


@cli.command("sweep", help="Weight decay and dropout on a small model.")
@_data
@_out
@_tiny
@_minutes
def _sweep(data: Path, out: Path, tiny: bool, minutes: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with stopping_after(minutes):
        rows = sweep(unpacked(data, out), out, tiny)
    table = console.table(rows, ["weight decay", "dropout", "bits per byte"])
    (out / "sweep.md").write_text(table + "\n", encoding="utf-8")
    console.result(table)


def main(arguments: list[str]) -> int:
    """The exit code: 130 when there is more to do."""
    try:
        cli.main(arguments, standalone_mode=False)
        return 0
    except FledgeError as error:
        console.note(f"error: {error}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        console.note("stopped; call it again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
