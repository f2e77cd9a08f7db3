"""What goes wrong in a PPO run, named with its likely cause, from the numbers of its steps alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from statistics import fmean, variance
from typing import Any

from rlhf.config import PpoConfig

Line = dict[str, Any]  # of metrics.jsonl

WINDOW = 5  # steps that are averaged, so that one unlucky batch is no finding
ERRORS = 3  # standard errors that are no noise; more than the usual 2, as every step asks


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    name: str
    text: str
    is_fatal: bool = False  # the run can't get well again


class History:
    """The steps of a run so far; each problem is told once."""

    def __init__(self, lines: Sequence[Line], step: int) -> None:
        """Take up a resumed run's lines up to a step."""
        self._lines = [line for line in lines if line["step"] <= step and "kl" in line]
        self._told: set[str] = set()

    def add(self, line: Line, settings: PpoConfig) -> list[Finding]:
        """The new findings that a step gives rise to."""
        self._lines.append(line)
        found = [finding for finding in diagnose(self._lines, settings) if finding.name not in self._told]
        self._told |= {finding.name for finding in found}
        return found


def of_run(lines: Sequence[Line], settings: PpoConfig) -> list[Finding]:
    """Every finding that a run's steps gave rise to, each once, in order."""
    history = History([], 0)
    return [finding for line in lines if "kl" in line for finding in history.add(line, settings)]


def diagnose(lines: Sequence[Line], settings: PpoConfig) -> list[Finding]:
    """What is wrong at the last of these steps."""
    return [
        Finding(name, f"step {lines[-1]['step']}: {text}", name in FATAL)
        for name, rule in RULES.items()
        if (text := rule(lines, settings))
    ]


def _recent(lines: Sequence[Line], name: str) -> list[float]:
    return [line[name] for line in lines[-WINDOW:] if name in line]


def _first(lines: Sequence[Line], name: str) -> list[float]:
    return [line[name] for line in lines[:WINDOW] if name in line]


def _is_settled(lines: Sequence[Line]) -> bool:
    """Whether the first and the last steps are different ones."""
    return len(lines) >= 2 * WINDOW


def _learning(lines: Sequence[Line]) -> list[Line]:
    """The steps in which the policy was trained; in those of the critic's warm-up some things are not measured."""
    return [line for line in lines if line["updates"]]


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean of some steps."""
    return sqrt(variance(values) / len(values))


def _negative_kl(lines: Sequence[Line], settings: PpoConfig) -> str:
    if len(lines) < WINDOW or fmean(_recent(lines, "kl")) > -0.1 * max(
        1.0, fmean(_recent(lines, "answer_tokens")) / 50
    ):
        return ""
    return (
        f"the KL from the reference is {fmean(_recent(lines, 'kl')):.2f} nats an answer, and no KL is below 0: the "
        "answers were not drawn from the probabilities they are judged by. Look for another temperature, a top-k or "
        "a padding that the model can see"
    )


def _ratio(lines: Sequence[Line], settings: PpoConfig) -> str:
    # bfloat16 has 8 bits: log-probabilities differ by some hundredths between two ways of computing them.
    limit = 0.02 if settings.run.dtype == "float32" else 1.0
    error = max(_recent(lines, "ratio_error"), default=0.0)
    if error <= limit:
        return ""
    return (
        f"before the first update of a step the probabilities of some tokens were off by a factor of {1 + error:.3g} "
        "from those they were drawn with, and should be equal: dropout is on, or the sampler and the model see other "
        "tokens or another temperature"
    )


def _kl_explosion(lines: Sequence[Line], settings: PpoConfig) -> str:
    kl, tokens = lines[-1]["kl"], lines[-1]["answer_tokens"]
    if kl < 20 + 5 * tokens:  # 20: a short answer may rightly be one that the reference hardly ever gives
        return ""
    return (
        f"the KL from the reference is {kl:.0f} nats an answer of {tokens:.0f} tokens: the policy has come apart. "
        "Lower --optim.learning-rate, raise --kl.weight or set --clip.stop-kl 0.05, and start a new run"
    )


def _entropy_collapse(lines: Sequence[Line], settings: PpoConfig) -> str:
    if not _is_settled(lines := _learning(lines)):
        return ""
    now, before = fmean(_recent(lines, "entropy")), fmean(_first(lines, "entropy"))
    if before < 0.05 or now > 0.1 * before:
        return ""
    return (
        f"the entropy fell from {before:.2f} to {now:.3f} nats a token: the policy gives nearly the same answer "
        "always and can't find a better one. Raise --kl.weight, lower --optim.learning-rate or set --clip.entropy 0.01"
    )


def _length_blow_up(lines: Sequence[Line], settings: PpoConfig) -> str:
    if not _is_settled(lines):
        return ""
    now, before = fmean(_recent(lines, "answer_tokens")), fmean(_first(lines, "answer_tokens"))
    if now < 2 * before or now < 0.5 * settings.sampling.max_new_tokens:
        return ""
    return (
        f"answers grew from {before:.0f} to {now:.0f} tokens: the reward pays for length. Raise "
        "--scores.unfinished-penalty or --kl.weight, or mend the reward (`fledge rlhf reward` shows its accuracy "
        "within pairs of equal length)"
    )


def _never_stops(lines: Sequence[Line], settings: PpoConfig) -> str:
    penalty, room = settings.scores.unfinished_penalty, settings.sampling.max_new_tokens
    if len(lines) < WINDOW or fmean(_recent(lines, "stopped_share")) > 0.02 or room == 1:
        return ""
    before = fmean(_first(lines, "stopped_share"))
    if _is_settled(lines) and before > 0.1:
        return (
            f"answers no longer end by themselves within {room} tokens; {before:.0%} of the first ones did. The reward "
            "pays for going on: raise --scores.unfinished-penalty"
        )
    if not penalty:  # whoever charges nothing for it expects it, as of a model without chat
        return ""
    return (
        f"no answer ends by itself within {room} tokens, and each is charged --scores.unfinished-penalty {penalty:g}. "
        "If they are to be cut there, as those of a model without chat are, set it to 0; else raise "
        "--sampling.max-new-tokens, or teach the model to stop first (`fledge finetune instruct`)"
    )


def _over_optimisation(lines: Sequence[Line], settings: PpoConfig) -> str:
    """The reward that is learned from rises while one that is not falls from its best, both by more than noise."""
    name, kind, cause = "validation_gold_reward", "gold reward", "the policy exploits the reward"
    if not any(name in line for line in lines):
        name, kind, cause = ("validation_reward", "held-out reward", "the policy knows the training prompts by heart")
    checks = [n for n, line in enumerate(lines) if f"{name}_error" in line]
    if not checks:
        return ""
    best, last = max(checks, key=lambda n: float(lines[n][name])), [lines[n] for n in checks[-2:]]
    until = max(best + 1, WINDOW)
    if best >= checks[-2:][0] or len(lines) < until + WINDOW:
        return ""
    fell = lines[best][name] - fmean(line[name] for line in last)
    # As if checks were independent: they ask the same prompts, so the true error is smaller.
    errors = [lines[best][f"{name}_error"], *(line[f"{name}_error"] / len(last) for line in last)]
    before, now = _recent(lines[:until], "reward"), _recent(lines, "reward")
    rose = fmean(now) - fmean(before)
    if fell <= ERRORS * hypot(*errors) or rose <= ERRORS * hypot(_error(before), _error(now)):
        return ""
    return (
        f"since step {lines[best]['step']} the reward rose by {rose:.3g} while the {kind} fell by {fell:.3g} (standard "
        f"error {hypot(*errors):.2g}): {cause}. Stop at that step, raise --kl.weight or set --kl.budget"
    )


def _idle_critic(lines: Sequence[Line], settings: PpoConfig) -> str:
    if not _is_settled(lines := _learning(lines)):
        return ""
    found = _recent(lines, "explained_variance")
    if max(found) < -0.02:
        return (
            f"the critic explains {fmean(found):.2f} of the returns' variance, less than their mean would: lower "
            "--optim.critic-learning-rate, or give it a start with --optim.critic-warmup 5"
        )
    if any(found) and max(map(abs, found)) < 0.001:
        return (
            "the critic explains nothing of the returns: too small a --optim.critic-learning-rate, or scores so large "
            "that steps of --clip.value do not get it there; set --scores.scale running"
        )
    return ""


RULES: dict[str, Callable[[Sequence[Line], PpoConfig], str]] = {
    "negative KL": _negative_kl,
    "ratio": _ratio,
    "KL explosion": _kl_explosion,
    "entropy collapse": _entropy_collapse,
    "length blow-up": _length_blow_up,
    "never stops": _never_stops,
    "over-optimisation": _over_optimisation,
    "idle critic": _idle_critic,
}
FATAL = {"KL explosion"}
