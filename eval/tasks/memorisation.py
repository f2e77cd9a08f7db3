"""How long a stretch of its training text a model recites: the longest run of each greedy answer that stands there.

The model continues the beginnings of training documents; every token of what it writes is looked for, together with
its neighbours, in all of its own token shards. The baseline is what real text of the same kind has in common with
them: the longest run of pieces of the validation split, as long as the answers.
"""

from collections.abc import Sequence
from math import inf

import numpy as np

from eval.config import TaskConfig
from eval.harness import DoesNotApply, ItemScore, Scores
from eval.intervals import Estimate
from eval.ngrams import Stretches
from eval.subject import Subject
from fledge import console
from fledge.models import generation
from tokenizer import shards
from tokenizer.shards import TokenStream

PROMPT_TOKENS = 32  # of a document's beginning
NUM_DOCUMENTS = 100  # where no limit is given
_READ = 1 << 20  # ids of the stream at once


def measure(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    """Continue the beginnings of documents, evenly spread over the shards (the task's data, or the run's own)."""
    folder = shards.find_folder(task.data[0]) if task.data else subject.shards
    if folder is None:
        raise DoesNotApply("the token shards it was trained on are not here; give them with --data SHARDS")
    shards.check_tokenizer(folder, subject.tokenizer)
    stream = shards.open_split(folder, "train")
    starts = _beginnings(stream, limit or NUM_DOCUMENTS)
    prompts = [stream.read(start, PROMPT_TOKENS).tolist() for start in starts]
    answers = _continued(subject, prompts, task.max_new_tokens)
    runs = longest_runs(answers, stream)
    lengths = [len(answer) for answer in answers]
    items = [
        ItemScore(
            f"{folder}: token {start}", "shards", "", {"longest_run": float(run), "recited": run / max(1, length)}
        )
        for start, run, length in zip(starts, runs, lengths, strict=True)
    ]
    most = Estimate(float(max(runs)), -inf, inf, len(runs))  # of a largest value no interval is known
    settings = {"prompt_tokens": PROMPT_TOKENS, "new_tokens": task.max_new_tokens, "shards": str(folder)}
    return Scores(items, _baselines(folder, stream, lengths), {"longest_run_of_all": most}, settings=settings)


def longest_runs(sequences: Sequence[np.ndarray], stream: TokenStream) -> list[int]:
    """For each sequence the length of its longest stretch that stands somewhere in the stream.

    By bisection: a stretch of n can only be there if one of n - 1 is, so log2 of the longest passes suffice.
    """
    low, high = [0] * len(sequences), [len(sequence) for sequence in sequences]
    with console.progress("looking through the training text") as bar:
        while any(a < b for a, b in zip(low, high, strict=True)):
            middle = [(a + b + 1) // 2 for a, b in zip(low, high, strict=True)]
            open_ones = [i for i in range(len(sequences)) if low[i] < high[i]]
            sought = {n: [i for i in open_ones if middle[i] == n] for n in {middle[i] for i in open_ones}}
            searches = {n: Stretches([sequences[i] for i in rows], n) for n, rows in sought.items()}
            for start in range(0, len(stream), _READ):
                ids = stream.read(start, min(_READ, len(stream) - start))
                for search in searches.values():
                    search.read(ids)
            for n, rows in sought.items():
                for i, found in zip(rows, searches[n].found(), strict=True):
                    low[i], high[i] = (n, high[i]) if found.any() else (low[i], n - 1)
            bar.advance()
    return low


def _beginnings(stream: TokenStream, count: int) -> list[int]:
    """Where documents of at least a prompt begin, about evenly spread over the stream."""
    places = np.linspace(0, len(stream) - 1, count, endpoint=False, dtype=np.int64).tolist()
    starts = dict.fromkeys(_beginning_behind(stream, place) for place in places)
    found = [start for start in starts if start is not None]
    if not found:
        raise DoesNotApply(f"no document of the training text has {PROMPT_TOKENS} tokens")
    return found


def _beginning_behind(stream: TokenStream, place: int) -> int | None:
    """The first beginning of a document of at least a prompt; a book may have to be passed over."""
    while place < len(stream):
        ids = stream.read(place, min(1 << 16, len(stream) - place))
        ends = np.flatnonzero(ids == stream.end_of_text_id)
        long_enough = ends[np.diff(ends, append=len(ids)) > PROMPT_TOKENS]
        if len(long_enough):
            return place + int(long_enough[0]) + 1
        place += max(1, len(ids) - PROMPT_TOKENS)
    return None


def _continued(subject: Subject, prompts: list[list[int]], new_tokens: int) -> list[np.ndarray]:
    """The ids of greedy continuations, without the document's end."""
    sampling = generation.Sampling(max_new_tokens=new_tokens, temperature=0.0)
    sampling = generation.fitted(subject.model, subject.tokenizer, sampling)
    completions = subject.continued(prompts, sampling)
    return [np.array(c.ids[:-1] if c.finish == "stop" else c.ids, dtype=np.int64) for c in completions]


def _baselines(folder: object, stream: TokenStream, lengths: Sequence[int]) -> dict[str, float]:
    """The mean longest run of validation text; none where there is too little of it."""
    split = shards.read_index(str(folder)).splits.get("validation")
    if split is None or split.num_tokens < sum(lengths):
        return {}
    held_out = shards.open_split(str(folder), "validation")
    starts = np.linspace(0, len(held_out) - max(lengths), len(lengths), dtype=np.int64).tolist()
    pieces = [held_out.read(start, length) for start, length in zip(starts, lengths, strict=True)]
    runs = longest_runs(pieces, stream)
    shares = [run / max(1, length) for run, length in zip(runs, lengths, strict=True)]
    return {"longest_run": sum(runs) / len(runs), "recited": sum(shares) / len(shares)}
