"""Rewards: what says how good an answer is. A reward model's folder, a shipped function, or a user's own file."""

import difflib
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval import checks, user_file
from eval.reward import RewardModel
from fledge import console, lineage
from fledge.data import prompts
from fledge.errors import DataError, FledgeError, ModelError
from fledge.models.folder import find_model, read_config
from fledge.tokens import TextTokenizer
from rlhf import rewards

# Each file in these packages is a reward by its name; a check is one by its `check(row, answer)`.
PACKAGES = {"rlhf.rewards": Path(rewards.__file__).parent, "eval.checks": Path(checks.__file__).parent}

Score = Callable[[Sequence[dict[str, Any]], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Reward:
    """A reward, ready to score; get one from `open_reward`."""

    name: str  # as it was asked for
    path: Path | None  # the folder of the reward model or classifier; None: a plain function
    function: Score
    tokenizer: TextTokenizer | None = None  # of the reward model
    reader: Any = None  # what reads the texts, and perhaps counts as `num_cut` those that it had to cut
    identity: dict[str, Any] = field(default_factory=dict)  # for lineage: what it is, with the hash of its content

    @property
    def num_cut(self) -> int:
        """How many answers with their prompts, so far, lost their beginning to the context of the reward's model."""
        return getattr(self.reader, "num_cut", 0)

    def score(self, rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
        """The reward of each answer to its row, in order; `prompt` in a row is text or messages.

        Tells the first time that some had to be cut.

        Raises:
            DataError: the function raised, or gave something other than one finite number an answer.
        """
        if not rows:
            return []
        was_cut = self.num_cut
        try:
            found = list(self.function(rows, answers))
        except Exception as error:
            raise self._of_one_row(rows, answers, error) from error
        if len(found) != len(rows):
            raise DataError(
                f"--reward {self.name}: {len(found)} scores for {len(rows)} answers; it must give one an answer"
            )
        for row, answer, value in zip(rows, answers, found, strict=True):
            if not _is_finite(value):
                raise DataError(f"--reward {self.name}: {value!r}, no finite number, for {_told(row, answer)}")
        if self.num_cut and not was_cut:
            console.warn(
                f"--reward {self.name}: {self.num_cut} of {len(rows)} answers with their prompts are longer than its "
                "context: their beginnings are not read, now and from here on"
            )
        return [float(value) for value in found]

    def _of_one_row(self, rows: Sequence[dict[str, Any]], answers: Sequence[str], whole: Exception) -> FledgeError:
        """What was raised, with the first row that alone raises as well."""
        for row, answer in zip(rows, answers, strict=True):
            try:
                self.function([row], [answer])
            except Exception as error:
                return DataError(f"--reward {self.name}: {user_file.said(error)}; for {_told(row, answer)}")
        return DataError(
            f"--reward {self.name}: {user_file.said(whole)}; for {len(rows)} answers at once, for none alone"
        )


def open_reward(source: str, device: str = "cpu") -> Reward:
    """Find a reward: NAME or NAME:ARGUMENT of a module in `rlhf/rewards` or `eval/checks`, FILE.py, or a reward model.

    A module has `score(rows, answers) -> list[float]`, or `make(argument, device)` that gives such a function (and,
    where it reads a model, `folder_of(argument)`); a check has `check(row, answer) -> float`; a user's file has
    `score`. A name goes before a folder that is called so: write ./NAME for that.
    Raises:
        DataError: there is no such reward; lists what there is. ConfigError: the file can't be imported.
        ModelError: the folder is no reward model; says what it is.
    """
    name, colon, argument = source.partition(":")
    if source.endswith(".py"):
        return _of_module(source, user_file.load(source), Path(source), None, device)
    for package, folder in PACKAGES.items():
        file = folder / f"{name}.py"
        if name in shipped() and file.is_file():
            module = importlib.import_module(f"{package}.{name}")
            return _of_module(source, module, file, argument if colon else None, device)
    if not Path(source).exists() and "/" not in source:
        close = difflib.get_close_matches(name, shipped(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(
            f"--reward {source}: no reward of this name and no folder; {hint}there are: {', '.join(shipped())}; "
            "or give a reward model's folder, or a .py file with score(rows, answers)"
        )
    return _of_model(source, device)


def shipped() -> list[str]:
    """The names of the rewards and of the checks."""
    return sorted({file.stem for folder in PACKAGES.values() for file in folder.glob("[a-z]*.py")})


def announce(reward: Reward, tokenizer: TextTokenizer) -> None:
    """Say what rewards, and that it reads answers with a tokenizer of its own where that is so.

    Args:
        tokenizer: the policy's.
    """
    what = f"reward model {reward.path}" if reward.tokenizer else f"reward {reward.name}"
    console.note(what)
    if reward.tokenizer and reward.tokenizer.fingerprint != tokenizer.fingerprint:
        console.note(f"{what} has another tokenizer than the policy: answers are encoded again by their text")


def _of_module(source: str, module: Any, file: Path, argument: str | None, device: str) -> Reward:
    identity: dict[str, Any] = {"name": source, "sha256": lineage.sha256_file(file)}
    if argument is None and hasattr(module, "score"):
        return Reward(source, None, module.score, identity=identity)
    if argument is None and hasattr(module, "check"):
        return Reward(source, None, lambda rows, answers: list(map(module.check, rows, answers)), identity=identity)
    if not hasattr(module, "make"):
        problem = "has no function score(rows, answers)" if argument is None else f"takes no {argument!r}"
        raise DataError(f"--reward {source}: {file.name} {problem}")
    if not argument:
        raise DataError(f"--reward {source}: needs an argument; {module.USAGE}")
    path = module.folder_of(argument) if hasattr(module, "folder_of") else None
    if path:
        identity["model"] = lineage.parent(path, "reward")
    function = module.make(argument, device)
    return Reward(source, path, function, reader=function, identity=identity)


def _of_model(source: str, device: str) -> Reward:
    folder = find_model(source)
    kinds = read_config(folder).get("architectures") or ["model without a head"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            f"--reward {source}: holds a {', '.join(kinds)}, no reward model; make one with "
            f"`fledge rlhf reward {source} --data ...`"
        )
    try:
        model = RewardModel.open(str(folder), device)
    except ModelError as error:
        raise ModelError(f"--reward {error}; for the probability of a label use sentiment:{source}") from None

    def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
        return model.score([prompts.of_row(row).messages for row in rows], answers)

    identity = {"name": source, "model": lineage.parent(folder, "reward")}
    return Reward(source, folder, score, model.inner.tokenizer, model, identity)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _told(row: dict[str, Any], answer: str) -> str:
    return f"the answer {answer[:60]!r} to {str(row.get('prompt'))[:80]!r}"
