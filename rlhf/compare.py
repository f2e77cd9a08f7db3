"""`fledge rlhf compare`: what each run gained, at its KL to the reference, of what could be gained there."""

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from finetune import published, vocabulary
from fledge import console, lineage, plots
from fledge.data.sources import describe
from fledge.errors import DataError
from fledge.models import generation
from fledge.models.folder import load_model
from fledge.models.generation import Sampling
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer
from rlhf import contestants, drawn, frontier, prompts, scoring, standing
from rlhf.config import CompareConfig
from rlhf.contestants import Contestant
from rlhf.drawn import Drawn, Judges
from rlhf.policy import Policy
from rlhf.prompts import Asked
from rlhf.standing import Number, Point, Standing

REFERENCE = "reference"
CURVE_POINTS = 60
LEAST = f"{frontier.LEAST_EFFECTIVE:.0f}"


def run(settings: CompareConfig, folder: RunFolder) -> dict[str, Any]:
    """Compare runs in a run folder; see CompareConfig."""
    found = contestants.find(settings.runs)
    path = contestants.reference(settings.reference, found)
    settings = contestants.resolved(settings, found)
    folder.freeze(settings)
    tokenizer = TextTokenizer.from_folder(path)
    if found and all(one.settings.get("plain_prompts") for one in found):
        tokenizer.chat_template = None
    contestants.check_tokenizers(found, path, tokenizer)
    reward = scoring.open_reward(settings.reward, settings.device)
    gold = scoring.open_reward(settings.gold, settings.device) if settings.gold else None
    judges = Judges(reward, gold, settings.unfinished_penalty or 0.0)
    scoring.announce(reward, tokenizer)
    model = load_model(path, device=settings.device)
    max_bad_share = max((one.settings.get("max_bad_share", 0.01) for one in found), default=0.01)
    asked = _asked(settings, tokenizer, generation.context_of(model), folder, max_bad_share)
    folder.add_lineage(
        parents=[lineage.parent(path, "reference"), *(lineage.parent(one.path, "policy") for one in found)],
        tokenizer=tokenizer.fingerprint,
        rewards=[one.identity for one in (reward, gold) if one],
    )
    everyone = _answers(settings, model, found, asked, tokenizer, judges)
    published.write_rows(folder, "answers.jsonl", _first_answers(asked, everyone))
    points = _points(settings, found, everyone)
    against = Standing(points[0], everyone[REFERENCE], settings.seed)
    result = {
        "reference": str(path),
        "reward": reward.name,
        "unfinished_penalty": judges.unfinished_penalty,
        "gold": gold.name if gold else None,
        "prompts": len(asked),
        "trusted_kl": against.trusted_kl,
        "policies": [against.line(point) for point in points],
        "frontier": against.told_frontier(),
        "flags": against.flags(points),
    }
    _draw(result, against, folder.path / "frontier.png")
    folder.write_summary(_summary(settings, result, folder))
    return result


def _asked(
    settings: CompareConfig, tokenizer: TextTokenizer, context: int, folder: RunFolder, max_bad_share: float
) -> list[Asked]:
    """The prompts to compare on; as many bad rows are passed over as by any of the runs.

    Raises:
        DataError: there are fewer than two.
    """
    room = context - settings.sampling.max_new_tokens
    found = prompts.read(settings.prompts, tokenizer, room, settings.held_out_share, max_bad_share)
    folder.add_lineage(data={"sources": describe(found.sources)})
    asked = found.held_out + (found.train if settings.part == "all" else [])
    if len(asked) < 2:
        raise DataError(
            f"{', '.join(settings.prompts)}: of {len(found.train) + 1} prompts 1 is held out, and a comparison needs "
            "two at least; give more prompts, or --part all if none of them was trained on"
        )
    return asked[: settings.max_prompts]


def _answers(
    settings: CompareConfig,
    model: Any,
    found: Sequence[Contestant],
    asked: Sequence[Asked],
    tokenizer: TextTokenizer,
    judges: Judges,
) -> dict[str, Drawn]:
    """The answers of the reference and of each run, by name."""
    wanted, judge = settings.sampling, Policy(model, settings.sampling.temperature)
    sampling = Sampling(
        max_new_tokens=wanted.max_new_tokens,
        temperature=wanted.temperature,
        stop_ids=vocabulary.stop_ids(tokenizer),
        seed=settings.seed,
    )

    def of(model: Any, num: int, reference: Policy | None, who: str) -> Drawn:
        written = drawn.draw(model, asked, num, sampling, tokenizer, wanted.at_once, who)
        return drawn.judge(asked, written, judges, reference, who)

    answers = {REFERENCE: of(model, wanted.reference, None, REFERENCE)}
    for one in found:
        policy = load_model(one.path, device=settings.device)
        answers[one.name] = of(policy, wanted.policy, judge, one.name)
    return answers


def _points(settings: CompareConfig, found: Sequence[Contestant], everyone: dict[str, Drawn]) -> list[Point]:
    """The reference, best-of-n from its answers, and the runs."""
    own, wanted = everyone[REFERENCE], settings.sampling
    num_told = min([wanted.policy, *(wanted.reference // n for n in settings.best_of)])
    return [
        standing.mean_point(REFERENCE, REFERENCE, own, num_told),
        *(standing.best_of(n, own, num_told) for n in settings.best_of),
        *(standing.mean_point(one.name, one.method, everyone[one.name], num_told) for one in found),
    ]


def _first_answers(asked: Sequence[Asked], everyone: dict[str, Drawn]) -> Iterator[dict[str, Any]]:
    """For each prompt the first answer of each policy."""
    for row, one in enumerate(asked):
        said = {name: {"text": x.text[row, 0], "reward": x.reward[row, 0]} for name, x in everyone.items()}
        yield {"prompt": one.row["prompt"], "answers": said}


def _draw(result: dict[str, Any], against: Standing, file: Path) -> None:
    """The plot: the frontier as far as the farthest policy, and all policies."""
    policies = result["policies"]
    end = max(result["frontier"][-1]["kl"], *(line["kl"]["value"] for line in policies))
    curve = against.curve(end * np.linspace(0, 1, CURVE_POINTS) ** 2)
    labels = {"gain": f"reward gained: {result['reward']}", "gold_gain": f"gold reward gained: {result['gold']}"}
    labels = {key: label for key, label in labels.items() if key in policies[0]}
    plots.reward_by_kl(
        {label: [one | one[key] for one in curve] for key, label in labels.items()},
        [line | {label: line[key] for key, label in labels.items()} for line in policies],
        file,
    )


def _summary(settings: CompareConfig, result: dict[str, Any], folder: RunFolder) -> str:
    penalty, sampling = result["unfinished_penalty"], settings.sampling
    less = f", less {penalty:g} for an answer that does not end by itself" if penalty else ""
    lines = [
        f"# {folder.path}",
        "",
        f"Reference: {result['reference']}. Reward: {result['reward']}{less}. {result['prompts']} prompts, "
        f"{sampling.reference} answers of the reference to each and {sampling.policy} of each run, of up to "
        f"{sampling.max_new_tokens} tokens, at temperature {sampling.temperature:g}.",
        "",
        _policies(result["policies"]),
        "",
        "KL: to the reference, nats an answer. % of possible: of the highest gain at that KL that any policy can have, "
        f"by the table below; beyond its end, where fewer than {LEAST} answers carry it, of the gain there. "
        "Perplexity: under the reference. In parentheses: 95 % intervals over prompts; ? where the KL may be 0.",
        "",
        _frontier(result["frontier"]),
        "",
        *(f"- {flag}" for flag in result["flags"]),
        f"plot: {folder.path}/frontier.png; an answer of each to every prompt: {folder.path}/answers.jsonl",
    ]
    return "\n".join(lines)


def _policies(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            line["name"],
            _cell(line["kl"]),
            f"{line['reward']:.3f}",
            _cell(line["gain"]),
            _cell(line["share"], 100) + ("" if line["is_trusted"] else f", at KL {line['share_kl']:.2f}"),
            f"{line['gold']:.3f}" if "gold" in line else "",
            _cell(line.get("gold_gain")),
            f"{line['distinct_2']:.3f}",
            f"{line['answer_tokens']:.1f}",
            f"{line['stopped_share']:.0%}",
            f"{line['perplexity']:.2f}",
        ]
        for line in lines
    ]
    header = ["policy", "KL", "reward", "gain", "% of possible", "gold", "gold gain"]
    return console.table(rows, [*header, "distinct-2", "tokens", "stopped", "perplexity"])


def _frontier(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{line['kl']:.2f}",
            _cell(line["gain"]),
            _cell(line.get("gold_gain")),
            f"{line['beta'] or inf:.3g}",
            f"{line['effective_answers']:.0f}",
            f"{line['thin_share']:.0%}",
            f"{line['shortfall']:.3f}",
        ]
        for line in lines
    ]
    header = ["KL", "gain", "gold gain", "beta", "effective answers", f"prompts below {LEAST}", "too low by"]
    return console.table(rows, header)


def _cell(number: Number | None, scale: int = 1) -> str:
    """A value and its interval, to be read."""
    if number is None or number["value"] is None:
        return ""
    value, low, high = ("?" if n is None else f"{scale * n:.{0 if scale == 100 else 3}f}" for n in number.values())
    return f"{value} ({low} to {high})"
