"""Generated answers beside those in the data: exact match, ROUGE-L, BLEU, and any metric named by the task.

Rows are read as for fine-tuning: messages, Alpaca, ShareGPT, prompt and completion.
"""

from collections.abc import Sequence

from eval import generated, metric_module
from eval.config import TaskConfig
from eval.intervals import Estimate
from eval.items import Answer, Item
from eval.metrics import exact_match, rouge_l
from eval.metrics.bleu import bleu
from fledge.data.rows import Row
from fledge.errors import DataError

FIELDS = ()


def item(row: Row, task: TaskConfig) -> Item:
    """The conversation up to its last answer, which is the reference."""
    prompt = generated.prompt_of(row, task)
    if not prompt.reference or not prompt.reference.strip():
        raise DataError(f"{row.where}: no answer to compare with, or an empty one; a reference needs text")
    text = generated.text_of(prompt)
    facts = {"prompt": text, "reference": prompt.reference, "metrics": task.metrics}
    return Item(row, (generated.request(prompt, task),), row.source, text, facts)


def score(item: Item, answers: Sequence[Answer]) -> dict[str, float]:
    """How close the answer is to the reference, and whether it stopped by itself."""
    return _closeness(item, answers[0].text) | generated.beside(answers[0])


def baselines(items: Sequence[Item]) -> dict[str, float]:
    """The better of an empty answer and of the prompt repeated."""
    copied = [item.facts["prompt"] for item in items]
    return generated.best_copies(items, _closeness) | {"bleu": bleu(copied, _references(items))}


def pooled(items: Sequence[Item], answers: Sequence[Sequence[Answer]]) -> dict[str, Estimate]:
    """Corpus BLEU, the variety of the answers, and the task's own metrics."""
    texts, references = [answer[0].text for answer in answers], _references(items)
    metrics = {"bleu": bleu} | {name: metric_module.find(name) for name in items[0].facts["metrics"]}
    estimates = {
        name: generated.pooled_estimate(f, texts, references, is_share=f is bleu) for name, f in metrics.items()
    }
    return estimates | generated.variety(answers)


def _closeness(item: Item, text: str) -> dict[str, float]:
    reference = item.facts["reference"]
    return {"exact_match": float(exact_match.is_match(text, reference)), "rouge_l": rouge_l.of_one(text, reference)}


def _references(items: Sequence[Item]) -> list[str]:
    return [item.facts["reference"] for item in items]
