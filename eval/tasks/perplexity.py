"""Bits per byte and perplexity of any text: each document by itself, a long one in windows (`stride`)."""

from eval import perplexity
from eval.config import TaskConfig
from eval.harness import GIVE_DATA, Scores
from eval.subject import Subject
from fledge import console
from fledge.errors import DataError


def measure(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    """The text's cost in windows of the model's context; with a limit, in that many windows spread evenly.

    Raises:
        DataError: no text given, or it can't be read.
    """
    if not task.data:
        raise DataError(f"perplexity needs text: {GIVE_DATA}")
    tokenizer, context = subject.tokenizer, subject.scorer.context
    texts = list(perplexity.documents(task.data, tokenizer))
    stride = min(task.stride, context)
    count = sum(1 for text in texts for _ in perplexity.windows(text, context, stride))
    chosen = set(perplexity.spread(count, limit))  # ids in lists take memory: no others are kept
    each = (window for text in texts for window in perplexity.windows(text, context, stride))
    found = [window for place, window in enumerate(each) if place in chosen]
    if not found:
        raise DataError(f"{', '.join(task.data)}: no text in it")
    num_changed = sum(not text.is_kept for text in texts)
    if num_changed:
        console.warn(
            f"perplexity: the tokenizer does not give {num_changed} of {len(texts)} documents back as they are "
            "(unknown characters, changed letters): the model pays for less than the text says, and its bits per byte "
            "can't be compared with those of other tokenizers"
        )
    settings = {"text": "documents", "documents": len(texts), "context": context, "stride": task.stride or context}
    return perplexity.scores_of(subject, found, settings)
