"""The root of the command line: loads a stage only when it is called."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent

# In the order of a model's life.
STAGES = {
    "tokenizer": "text to a tokenizer",
    "pretrain": "text and a tokenizer to a base model",
    "finetune": "a base model to one that answers, or that classifies",
    "rlhf": "reward models, PPO, DPO, GRPO, and their comparison",
    "eval": "the same numbers for every model",
}

# Commands of the root itself: name -> (module, attribute, help).
OWN = {
    "demo": ("fledge.life", "demo", "the whole life on built-in data, on a CPU, in minutes"),
    "doctor": ("fledge.doctor", "doctor", "this machine: devices, versions, what is missing and how to get it"),
    "village": ("fledge.village_files", "village", "the built-in world's data as plain files"),
    "runs": ("fledge.runs", "runs", "the runs that are there: command, state, parent, loss, size"),
}

# Commands of a stage that the root has, too: name -> (stage, help).
SHARED = {
    "chat": ("finetune", "talk to a model"),
    "report": ("eval", "a model's whole life on one page"),
    "plan": ("pretrain", "what pretraining will take: memory, time, cost"),
}


class Root(click.Group):
    """Stages as groups, imported on use; the commands of the root beside them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*STAGES, *SHARED, *OWN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OWN:
            module, attribute, _ = OWN[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if cmd_name in SHARED:
            return _stage(SHARED[cmd_name][0]).get_command(ctx, cmd_name)
        return _stage(cmd_name) if cmd_name in STAGES else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every stage for its short help.
        with formatter.section("Stages"):
            formatter.write_dl([*STAGES.items()])
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (*_, text) in (SHARED | OWN).items()])


def _stage(name: str) -> click.Group:
    """The group of a stage, after checking that all packages of these names are fledge's own.

    Raises:
        FledgeError: another package or module of the same name stands before one on the import path.
    """
    from fledge.errors import FledgeError

    for package in STAGES:
        spec = importlib.util.find_spec(package)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != ROOT / package / "__init__.py":
            raise FledgeError(
                f"the package '{package}' comes from {found}, not from {ROOT / package}; "
                "install fledge into an environment of its own, or leave that folder"
            )
    module: Any = importlib.import_module(f"{name}.cli")
    stage: click.Group = module.cli
    return stage


@click.command(cls=Root, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(None, package_name="fledge-lm", message="fledge %(version)s", help="the version")
@click.option("--local_rank", hidden=True, expose_value=False, help="put here by the deepspeed launcher")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """fledge: a language model's whole life, stage by stage.

    Each command reads a folder and writes the next: fledge STAGE COMMAND --help shows what it takes.
    """
    if ctx.invoked_subcommand is None:
        from fledge import life_map

        click.echo(f"{ctx.get_help()}\n\n{life_map.draw()}")
