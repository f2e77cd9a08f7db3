"""Bits per byte and perplexity of the model's own validation text, in the windows of pretraining."""

from eval import perplexity
from eval.config import TaskConfig
from eval.harness import DoesNotApply, Scores
from eval.subject import Subject
from eval.token_tree import Tokens
from tokenizer import shards

HAS_OWN_DATA = True  # nothing is to be given


def measure(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    """The validation split's cost, document ends as context; with a limit, in windows spread evenly.

    Raises:
        DoesNotApply: the model's own shards are not there.
    """
    folder = subject.shards
    split = shards.read_index(folder).splits.get("validation") if folder else None
    if folder is None or split is None or split.num_tokens == 0:
        raise DoesNotApply("the model's run has no validation text here; --task perplexity takes any text")
    stream = shards.open_split(folder, "validation")
    context = subject.scorer.context
    starts = range(0, max(1, stream.num_tokens - 1), context)
    table = subject.tokenizer.token_bytes()
    found = []
    for start in (starts[i] for i in perplexity.spread(len(starts), limit)):
        ids = stream.read(start, min(context + 1, stream.num_tokens - start)).tolist()
        text = b"".join(table[i] for i in ids[1:])
        found.append(perplexity.Window(f"validation#{start}", Tokens(ids, 1), text))
    return perplexity.scores_of(subject, found, {"text": "stream", "context": context, "stride": context})
