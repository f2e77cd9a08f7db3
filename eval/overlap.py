"""`fledge eval overlap`: which items of a task stand in training text, and how a model does on them.

Texts are compared as words, without case and punctuation. An item is dirty if one stretch of n words of its requests
or of its row's texts stands in the training text (Brown et al. 2020, appendix C); an item of fewer words is looked
for as a whole, and one of fewer than MIN_WORDS is not judged, as so short a text may stand anywhere.
"""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import harness, intervals, results
from eval.config import MeasureConfig, OverlapConfig, TaskConfig
from eval.harness import ItemScore
from eval.items import Generation, Item, Ratio
from eval.ngrams import Stretches
from eval.run import with_data
from eval.subject import Subject
from fledge import console
from fledge.data import rows, sources
from fledge.data.rows import Reject
from fledge.data.sources import Source
from fledge.data.text import TextReader
from fledge.errors import ConfigError, DataError
from fledge.tokens import TextTokenizer
from tokenizer import shards

MIN_WORDS = 6
SHOWN = 3  # examples of dirty items a task
_WORD = re.compile(r"[^\W_]+|\0")
_BETWEEN = " \0 "  # documents: no stretch reaches over it
_READ = 1 << 20  # ids of shards at once


@dataclass(frozen=True)
class Judged:
    """An item and how much of it stands in the training text."""

    item: Item
    share: float | None  # of its stretches; None: too short to be judged

    @property
    def is_dirty(self) -> bool:
        """Whether any stretch does."""
        return bool(self.share)


def run(settings: OverlapConfig) -> dict[str, Any]:
    """Look for the items of tasks in training text; see OverlapConfig."""
    asked = MeasureConfig(task=settings.task, data=settings.task_data)
    tasks: dict[str, TaskConfig] = {}
    for name, task in harness.find_tasks(settings.task):
        tasks[name] = with_data(name, task, asked, None)
    items = {name: _items(name, task, settings.limit) for name, task in tasks.items()}
    every = [item for found in items.values() for item in found]
    judged = iter(judge(every, _stream(settings), settings.n))
    by_task = {name: [next(judged) for _ in found] for name, found in items.items()}
    subject = Subject.open(settings.model) if settings.model else None
    found = {name: _summary(by_task[name]) for name in tasks}
    for name, task in tasks.items():
        if subject is not None:
            measured = results.measured(subject, name, task, settings.limit)
            found[name]["metrics"] = split_scores(measured, by_task[name])
    console.result(_table(found))
    return {"model": settings.model, "out": None, "n": settings.n, "results": found}


def judge(items: Sequence[Item], stream: Iterator[str], n: int) -> list[Judged]:
    """Each item with the share of its stretches of n words that stand in a stream of texts."""
    vocabulary: dict[str, int] = {}
    texts = [[_number(text, vocabulary) for text in dict.fromkeys(_texts(item))] for item in items]
    lengths = [min(n, max(map(len, own), default=0)) for own in texts]
    searches = {
        length: Stretches(
            [text for own, its in zip(texts, lengths, strict=True) if its == length for text in own], length
        )
        for length in sorted(set(lengths))
        if length >= MIN_WORDS
    }
    for text in stream:
        ids = np.array([vocabulary.get(word, 0) for word in _WORD.findall(text.casefold())], dtype=np.int64)
        for search in searches.values():
            search.read(ids)
    found = {length: iter(search.found()) for length, search in searches.items()}
    judged = []
    for item, own, length in zip(items, texts, lengths, strict=True):
        hits = np.concatenate([next(found[length]) for _ in own]) if length in found else np.empty(0, bool)
        judged.append(Judged(item, float(hits.mean()) if len(hits) else None))
    return judged


def split_scores(measured: Mapping[str, Any], judged: Sequence[Judged]) -> dict[str, Any]:
    """Each metric over the clean and over the dirty items of a result, as {value, low, high, n}."""
    share = {(one.item.set, one.item.row.where): one.share for one in judged}
    items, found = measured["items"], dict[str, Any]()
    for metric, values in items["values"].items():
        scores: dict[str, list[ItemScore]] = {"clean": [], "dirty": []}
        for where, name, cluster, value in zip(items["where"], items["set"], items["cluster"], values, strict=True):
            if value is not None and share[name, where] is not None:
                plain = Ratio(*value) if isinstance(value, list) else value
                part = "dirty" if share[name, where] else "clean"
                scores[part].append(ItemScore(where, name, cluster, {metric: plain}))
        parts = {part: harness.overall(own, metric) for part, own in scores.items() if own}
        found[metric] = {part: intervals.as_json(estimate) for part, estimate in parts.items()}
    return found


def _items(name: str, task: TaskConfig, limit: int | None) -> list[Item]:
    kind = harness.find_kind(task.kind, name)
    if not hasattr(kind, "item"):
        raise ConfigError(f"--task {name}: a task of kind {task.kind} has no items of its own to look for")
    return harness.read_items(task, kind, limit)


def _texts(item: Item) -> Iterator[str]:
    """All that an item asks, and the texts of its row."""
    for request in item.requests:
        asked: Any = request.prompt if isinstance(request, Generation) else request.context
        text = asked if isinstance(asked, str) else "\n".join(message["content"] for message in asked)
        yield text if isinstance(request, Generation) else text + request.continuation
    yield from _strings(item.row.values)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _number(text: str, vocabulary: dict[str, int]) -> np.ndarray:
    words = [word for word in _WORD.findall(text.casefold()) if word != "\0"]
    return np.array([vocabulary.setdefault(word, len(vocabulary) + 1) for word in words], dtype=np.int64)


def _stream(settings: OverlapConfig) -> Iterator[str]:
    """The training text in pieces that end at words, in constant memory."""
    for name in settings.data:
        if any((folder / shards.INDEX).is_file() for folder in (Path(name), Path(name) / "shards")):
            yield from _of_shards(name)
            continue
        for source in sources.expand([name]):
            yield from _of_text(source) if source.format in ("text", "html") else _of_rows(source)


def _of_text(source: Source) -> Iterator[str]:
    """A text file, in parts that end at words."""
    reader = TextReader([source])
    with console.progress(source.name, source.size_bytes, "bytes") as bar:
        done = 0
        for document in reader.documents():
            yield document.text + (_BETWEEN if document.is_last_part else "")
            done, before = reader.size_bytes_done, done
            bar.advance(done - before)


def _of_rows(source: Source) -> Iterator[str]:
    """All texts of each row: those of a document, of a conversation, of a pair of answers."""
    with console.progress(source.name, unit="rows") as bar:
        for row in rows.iterate(source):
            if isinstance(row, Reject):
                console.warn(f"passed over {row}")
            else:
                yield from (text + _BETWEEN for text in _strings(row.values))
            bar.advance()


def _of_shards(name: str) -> Iterator[str]:
    """The text of the train split of token shards."""
    folder = shards.find_folder(name)
    stream = shards.open_split(folder, "train")
    table = list(TextTokenizer.from_folder(folder).token_bytes())
    table[stream.end_of_text_id] = _BETWEEN.encode()
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    pending = ""
    with console.progress(name, len(stream), "tokens") as bar:
        for start in range(0, len(stream), _READ):
            ids = stream.read(start, min(_READ, len(stream) - start))
            pending += decode(b"".join([table[i] for i in ids.tolist()]))
            cut = max(pending.rfind(" "), pending.rfind("\n"))
            yield pending[: cut + 1]
            pending = pending[cut + 1 :]
            bar.advance(len(ids))
    yield pending


def _summary(judged: Sequence[Judged]) -> dict[str, Any]:
    known = [one for one in judged if one.share is not None]
    if not known:
        raise DataError(f"{judged[0].item.row.where}: all items are shorter than {MIN_WORDS} words; none can be judged")
    dirty = [one for one in known if one.is_dirty]
    return {
        "items": len(judged),
        "too_short": len(judged) - len(known),
        "dirty": len(dirty),
        "dirty_share": len(dirty) / len(known),
        "dirty_items": {one.item.row.where: one.share for one in dirty},
    }


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    counts = [
        [name, *(str(one[key]) for key in ("items", "too_short", "dirty")), f"{one['dirty_share']:.4f}"]
        for name, one in found.items()
    ]
    lines = [console.table(counts, ["task", "items", "too short", "dirty", "share"])]
    for name, one in found.items():
        shown = [f"{where} ({share:.0%})" for where, share in list(one["dirty_items"].items())[:SHOWN]]
        lines += [f"{name}: dirty, for instance {', '.join(shown)}"] if shown else []
    scores = [
        [
            name,
            metric,
            part,
            f"{e['value']:.4f}",
            "" if e["low"] is None else f"{e['low']:.4f} to {e['high']:.4f}",
            str(e["n"]),
        ]
        for name, one in found.items()
        for metric, parts in one.get("metrics", {}).items()
        for part, e in parts.items()
    ]
    if scores:
        lines += ["", console.table(scores, ["task", "metric", "items", "value", "95 % interval", "n"])]
    return "\n".join(lines)
