"""PPO against the last one of TRL: CPU-seconds an episode at identical work, and those to the reward that TRL reaches.

FLEDGE_TRL_PPO names a folder with TRL 1.12.0, the last version with PPO. Both sides run as processes of one thread, in
turns. The second comparison needs something to learn: FLEDGE_PPO_MODEL and FLEDGE_PPO_REWARD, an instructed model and
its reward model, such as those of the built-in life; without them it is left out. FLEDGE_PPO_EPISODES: of TRL there.
"""

import json
import os
import tempfile
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from bench.measure import Row, process
from fledge import console
from fledge.errors import ConfigError, RunFailed
from fledge.metrics_log import read_metrics
from fledge.models import architecture, classifier
from fledge.models import folder as model_folder
from fledge.tokens import TextTokenizer
from fledge.village import spec
from tokenizer.learn import learn

EPISODES = tuple(map(int, os.environ.get("FLEDGE_PPO_LENGTHS", "128,256").split(",")))  # of a short and a long run
REPEATS = int(os.environ.get("FLEDGE_PPO_REPEATS", "3"))
PROMPT_TOKENS, PROMPTS = 12, 300
SHAPE: dict[str, Any] = {"layers": 9, "width": 320, "heads": 5, "context": 128}  # 12.6 M parameters
# 64 episodes a step, in one minibatch: only then does TRL make the updates that it is told to make.
OURS = [
    "--sampling.max-new-tokens=64", "--rollout.episodes=64", "--rollout.at-once=64", "--batch.epochs=4",
    "--batch.minibatch=64", "--batch.microbatch=16", "--optim.learning-rate=1e-5", "--optim.critic-learning-rate=1e-5",
    "--optim.critic-warmup=0", "--optim.clip-norm=0", "--clip.stop-kl=0", "--scores.unfinished-penalty=0",
    "--run.dtype=float32", "--run.checkpoint-every=1000000", "--validation.every=1000000", "--validation.prompts=2",
    "--validation.at-end=2",
]  # fmt: skip
THEIRS = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "num_ppo_epochs": 4}
IDENTICAL = THEIRS | {"response_length": 64, "learning_rate": 1e-5}
# As our configs/rlhf/ppo/hamlet.yaml has it; the rest is TRL's default.
HAMLET = {"response_length": 48, "learning_rate": 3e-4, "kl_coef": 0.1, "missing_eos_penalty": 1.0}


class Task(NamedTuple):
    """What both sides are given."""

    folder: Path  # for what they write
    model: str
    reward: str
    prompts: str


class Trained(NamedTuple):
    """What became of it; `told` says whether it is sound."""

    path: Path
    cpu_s: float
    told: str


def run() -> list[Row]:
    """The first comparison, and the second where there is a model for it."""
    peer = os.environ.get("FLEDGE_TRL_PPO", "")
    if not peer or not (Path(peer) / "trl" / "experimental" / "ppo").is_dir():
        raise ConfigError(
            f"FLEDGE_TRL_PPO={peer}: no TRL with PPO there; name a FOLDER that you have filled by "
            "`pip install --target FOLDER --no-deps trl==1.12.0`"
        )
    model, reward = (os.environ.get(f"FLEDGE_PPO_{name}") for name in ("MODEL", "REWARD"))
    with tempfile.TemporaryDirectory() as scratch:
        rows = [_identical_work(random_task(Path(scratch), SHAPE))]
        if model and reward:
            task = Task(Path(scratch), model, reward, "village:hamlet/instructions")
            rows.append(_to_the_reward(task, int(os.environ.get("FLEDGE_PPO_EPISODES", "2000"))))
    return rows


def random_task(folder: Path, shape: dict[str, Any]) -> Task:
    """A random model of a shape, a random reward model and prompts of equal length."""
    texts = [row["text"] for row in islice(spec.rows("village:hamlet"), 4 * PROMPTS)]
    tokenizer = TextTokenizer(learn("bpe", iter(texts), 2048))
    made = architecture.find_config("qwen3").sized(
        vocab_size=2048, pad_id=tokenizer.special_ids["<|pad|>"], bos_id=0, eos_id=0, **shape
    )
    tokenizer.save(folder / "policy")
    model_folder.save_model(architecture.build(made, seed=0), folder / "policy")
    torch.manual_seed(0)
    classifier.from_base(folder / "policy", ["reward"]).save(folder / "reward")
    starts = (tokenizer.decode(tokenizer.encode(text)[:PROMPT_TOKENS]) for text in texts)
    equal = dict.fromkeys(start for start in starts if len(tokenizer.encode(start)) == PROMPT_TOKENS)
    lines = [json.dumps({"prompt": start}) for start in islice(equal, PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return Task(folder, str(folder / "policy"), str(folder / "reward"), str(folder / "prompts.jsonl"))


def _identical_work(task: Task) -> Row:
    """CPU-seconds an episode, by runs of two lengths: their difference has no start-up in it."""
    rates: tuple[list[float], list[float]] = [], []
    for repeat in range(REPEATS):
        used = []
        for n in EPISODES:
            ours = _fledge(task, f"ours-{repeat}-{n}", *OURS, f"--run.max-steps={n // 64}")
            theirs = _trl(task, f"trl-{repeat}-{n}", IDENTICAL | {"total_episodes": n}, by_text=False)
            used.append((ours.cpu_s, theirs.cpu_s))
            for one in (ours, theirs):
                console.note(f"{one.path.name}: {one.cpu_s:.1f} CPU-s; {one.told}")
        for side, first, second in zip(rates, *used, strict=True):
            side.append((second - first) / (EPISODES[1] - EPISODES[0]))
    ours_s, theirs_s = map(median, rates)
    return Row("PPO, 12.6 M, against TRL", ours_s, theirs_s, theirs_s / ours_s, ">= 1.18", "CPU-s/episode")


def _to_the_reward(task: Task, episodes: int) -> Row:
    """The shortest of some runs as we ship them that has the reward of TRL's run or more, and no more KL."""
    theirs = _trl(task, "trl", THEIRS | HAMLET | {"total_episodes": episodes}, by_text=True)
    for steps in (6, 12, 18, 24, 30, 40):
        ours = _fledge(task, f"ours-{steps}", "--config=hamlet", f"--run.max-steps={steps}")
        out = task.folder / f"compare-{steps}"
        _process("fledge", "rlhf", "compare", str(ours.path), str(theirs.path), f"--reference={task.model}",
                 f"--reward={task.reward}", f"--prompts={task.prompts}", "--best-of=2", f"--out={out}",
                 "--sampling.reference=20", "--sampling.max-new-tokens=48")  # fmt: skip
        lines = json.loads((out / "result.json").read_text())["policies"]
        told = {line["name"]: (line["reward"], -line["kl"]["value"]) for line in lines}
        mine, goal = told[str(ours.path)], told[str(theirs.path)]
        console.note(f"reward and -KL: {mine} in {ours.cpu_s:.0f} CPU-s; TRL {goal} in {theirs.cpu_s:.0f}")
        if mine[0] >= goal[0] and mine[1] >= goal[1]:
            title = f"PPO to the reward of TRL's {episodes} episodes"
            return Row(title, ours.cpu_s, theirs.cpu_s, theirs.cpu_s / ours.cpu_s, ">= 3", "CPU-s")
    raise RunFailed("none of our runs has the reward of TRL's at no more KL; see above")


def _fledge(task: Task, name: str, *options: str) -> Trained:
    out = task.folder / name
    cpu_s = _process("fledge", "rlhf", "ppo", task.model, f"--reward={task.reward}", f"--prompts={task.prompts}",
                     f"--out={out}", "--run.threads=1", "--run.device=cpu", *options)  # fmt: skip
    lines = read_metrics(out)
    updates, last = sum(line["updates"] for line in lines), lines[-1]
    told = f"{updates} updates, KL {last['kl']:.4f}, |ratio - 1| {last['ratio_error']:.1e} at the first"
    return Trained(out, cpu_s, told)


def _trl(task: Task, name: str, options: dict[str, Any], by_text: bool) -> Trained:
    """TRL's trainer; `by_text`: our reward reads its answers' texts, else TRL asks the reward model itself."""
    out = task.folder / name
    settings = {**task._asdict(), "folder": str(out), "by_text": by_text, "options": options}
    cpu_s = _process("bench.ppo_trl", json.dumps(settings), PYTHONPATH=os.environ["FLEDGE_TRL_PPO"])
    found = json.loads((out / "log.json").read_text())
    told = f"{found['updates']} updates, KL {found['objective/kl']:.4f}, mean ratio {found['val/ratio']:.4f}"
    return Trained(out, cpu_s, told)


def _process(module: str, *arguments: str, **environment: str) -> float:
    """CPU-seconds of a Python process of one thread."""
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    return process(module, *arguments, **environment)[0]
