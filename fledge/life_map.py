"""What `fledge` alone shows: a life as a map, and what to type next in this folder."""

from pathlib import Path

from fledge import rundir
from fledge.runs import describe

MAP = """\
  text                conversations      texts + labels      preferences        prompts + a reward
   |                        |                  |                  |                    |
   v                        |                  |                  |                    |
  tokenizer train           |                  |                  |                    |
  pretrain prepare          v                  |                  v                    v
  pretrain train  -->  finetune instruct  ---- | --------->  rlhf reward  ----->  rlhf ppo | dpo | grpo
                  \\         |                  v                                       |
                   '------- | -------->  finetune classify                             v
                            '------------------------------------------------------>  chat

  eval run, eval compare, report: the same numbers after every arrow
"""

# What follows the newest run of a command; {run} is its folder, {parent} that of the run it was made from.
NEXT = {
    "tokenizer train": "fledge pretrain prepare --input 'my-texts/*.txt' --tokenizer {run} --out runs/shards",
    "pretrain prepare": "fledge pretrain train --config small --data {run} --time-budget 10m --out runs/base",
    "pretrain train": "fledge finetune instruct {run} --data my-conversations.jsonl --out runs/chat",
    "finetune instruct": "fledge rlhf reward {run} --data my-preferences.jsonl --out runs/reward",
    "finetune classify": 'fledge finetune predict {run} --text "what is this?"',
    "rlhf reward": "fledge rlhf ppo {parent} --reward {run} --prompts my-prompts.jsonl --out runs/ppo",
    "rlhf ppo": "fledge chat {run}",
    "rlhf dpo": "fledge chat {run}",
    "rlhf grpo": "fledge chat {run}",
}


def draw(folder: Path = rundir.RUNS) -> str:
    """The map, and the commands to type next."""
    return "\n".join([MAP, "Next:", *(f"  {line}" for line in following(folder))])


def following(folder: Path) -> list[str]:
    """What to type next, from the newest run in a folder; how to begin where there is none."""
    found = [p for p in sorted(folder.glob("*")) if rundir.is_run(p)] if folder.is_dir() else []
    found.sort(key=lambda run: (run / "config.yaml").stat().st_mtime)
    newest = next((run for run in map(describe, reversed(found)) if run["state"] != "damaged"), None)
    if newest is None:
        return [
            "fledge demo                                        the whole life on built-in data, in minutes",
            "fledge tokenizer train --input 'my-texts/*.txt' --out runs/tok     your own",
        ]
    if newest["state"] != "finished":
        return [f"fledge {newest['command']} --resume {newest['run']}"]
    parent = next(iter(newest["parents"]), "MODEL")
    line = NEXT.get(newest["command"], "fledge runs").format(run=newest["run"], parent=parent)
    return [line, f"fledge report {newest['run']} --out report.html"]
