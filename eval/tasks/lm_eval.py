"""Any task of lm-evaluation-harness by its name, `--task lm-eval:NAME`: its data, prompts and metrics, our model.

With `--data FOLDER` the task is looked up in that folder's YAML files; otherwise in the library's own, whose data it
fetches from the hub.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval import perplexity
from eval.config import TaskConfig
from eval.harness import ItemScore, Scores
from eval.items import Generation, Item, LogLikelihood
from eval.subject import Subject
from fledge import hub
from fledge.data.rows import Row
from fledge.errors import ConfigError, DataError


def measure(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    """The task's own metrics, each item's as the library computed it.

    Raises:
        ConfigError: the library is not installed, or knows no such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("--task lm-eval: not installed; pip install 'fledge-lm[lm-eval]'")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    name, *folders = task.data
    if not folders:
        hub.go_online()
    manager = TaskManager(include_path=folders or None, include_defaults=not folders)
    if name not in manager.all_tasks:
        raise ConfigError(f"--task lm-eval:{name}: lm-evaluation-harness knows no such task")
    found = simple_evaluate(model=_adapter(subject), tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=0)
    items, higher = [], found["higher_is_better"]
    for part, samples in found["samples"].items():
        for sample in samples:
            values = {
                metric: float(sample[metric])
                for metric in higher[part]
                if isinstance(sample.get(metric), bool | int | float | np.number)
            }
            items.append(ItemScore(f"{part}:{sample['doc_id']}", part, "", values))
    if not any(item.values for item in items):
        raise DataError(f"lm-eval:{name}: it has no metric that is a number for each item")
    versions = {"lm_eval_versions": found["versions"], "shots": found["n-shot"]}
    return Scores(items, {}, settings=versions)


def _adapter(subject: Subject) -> Any:
    """The subject as the library wants a model."""
    from lm_eval.api.model import LM

    class Adapter(LM):
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            asked = tuple(LogLikelihood(*request.args) for request in requests)
            items = [Item(Row("lm-eval", n, {}), (request,), "") for n, request in enumerate(asked)]
            answers, _ = subject.scorer.answer_items(items)
            return [(answer.nats, answer.is_greedy) for (answer,) in answers]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            totals = []
            for request in requests:
                text = perplexity.Document.of("", [request.args[0]], subject.tokenizer)
                windows = [window.tokens for window in perplexity.windows(text, subject.scorer.context)]
                totals.append(float(sum(s.logprobs.sum() for s in subject.scorer.score(windows))))
            return totals

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            asked = []
            for request in requests:
                prompt, settings = request.args
                stop = settings.get("until") or []
                stop = [stop] if isinstance(stop, str) else stop
                asked.append(Generation(prompt, settings.get("max_gen_toks", 256), tuple(filter(None, stop))))
            return [answer.text for answer in subject.generate(asked)]

    return Adapter()
