"""`fledge pretrain prepare`: text and a tokenizer to token shards."""

import contextlib
import math
import shutil
from dataclasses import asdict
from typing import Any

from fledge import console, lineage, rundir
from fledge.data import sources as src
from fledge.data.sources import Source
from fledge.data.text import TextReader
from fledge.device import usable_cores
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer, find_folder
from pretrain.config import PrepareConfig
from pretrain.data_card import data_card
from pretrain.sharding import Phase, Sharding, reader_of
from pretrain.split import SplitPlan, plan_by_hash, plan_tail
from tokenizer import shards
from tokenizer.bulk import bulk_encoder

# Of the input, to prove the fast encoder on: that much takes a fraction of a second.
_SAMPLE_CHARACTERS = 400_000
_SAMPLED_SOURCES, _OF_ONE_DOCUMENT = 16, 6000


def run(config: PrepareConfig, folder: RunFolder) -> dict[str, Any]:
    """Write the token shards of the input to `shards/` of the run, with the tokenizer beside them."""
    done = folder.path / "shards"
    if not done.is_dir():
        tokenizer = TextTokenizer.from_folder(config.tokenizer)
        phases = _phases(config)
        config = _derive(config, folder, tokenizer, phases)
        _record_lineage(config, folder, tokenizer, phases)
        with folder.stopping_politely():
            sharding = Sharding(config, folder, tokenizer, phases)
            with contextlib.closing(sharding):
                sharding.run()
    index = shards.read_index(done)
    folder.write_summary(data_card(index))
    if folder.checkpoints.is_dir():
        shutil.rmtree(folder.checkpoints)
    return {
        "tokens": sum(split.num_tokens for split in index.splits.values()),
        "bytes": sum(split.num_bytes for split in index.splits.values()),
        "documents": index.facts["documents"],
        "rejected": sum(index.facts["rejects"].values()),
        "splits": {name: _sizes(split) for name, split in index.splits.items()},
    }


def _phases(config: PrepareConfig) -> list[Phase]:
    # The validation text first: a training document that stands in it, too, is then the duplicate.
    train = Phase(src.expand(config.input))
    if not config.validation_input:
        return [train]
    return [Phase(src.expand(config.validation_input), "validation"), train]


def _derive(config: PrepareConfig, folder: RunFolder, tokenizer: TextTokenizer, phases: list[Phase]) -> PrepareConfig:
    """Decide what the config leaves open (split, encoder, threads), print it, freeze it.

    Raises:
        DataError: the input can't be split, or none of it can be read.
    """
    sources = phases[-1].sources
    if config.split == "auto":
        plan = _plan(config, sources)
        config = config.model_copy(update=asdict(plan))
        console.note(f"split: {plan}")
    sample = _sample(config, phases) if config.encoder == "auto" else []
    encoder, why = bulk_encoder(tokenizer, config.encoder, sample)
    config = config.model_copy(update={"encoder": encoder.name, "threads": config.threads or usable_cores()})
    console.note(f"encoder: {encoder.name} ({why}), {config.threads} threads")
    folder.freeze(config)
    return config


def _plan(config: PrepareConfig, sources: list[Source]) -> SplitPlan:
    if config.validation_input:
        return SplitPlan("input", config.validation_share)
    if config.validation_tail is not None:
        return plan_tail(reader_of(config, sources), config.validation_tail)
    return plan_by_hash(
        reader_of(config, sources), reader_of(config, sources), config.validation_share, config.min_bytes
    )


def _sample(config: PrepareConfig, phases: list[Phase]) -> list[str]:
    """The beginnings of some documents of sources spread over all of the input."""
    sources = [source for phase in phases for source in phase.sources]
    chosen = sources[:: math.ceil(len(sources) / _SAMPLED_SOURCES)]
    texts: list[str] = []
    for source in chosen:
        left = _SAMPLE_CHARACTERS // len(chosen)
        reader = TextReader([source], config.text_field, config.html, max_bad_share=1.0)
        for document in reader.documents():
            texts.append(document.text[:_OF_ONE_DOCUMENT])
            left -= len(texts[-1])
            if left <= 0:
                break
    return texts


def _record_lineage(config: PrepareConfig, folder: RunFolder, tokenizer: TextTokenizer, phases: list[Phase]) -> None:
    facts = {
        "parents": [lineage.parent(find_folder(config.tokenizer), "tokenizer")],
        "data": [entry for phase in phases for entry in src.describe(phase.sources)],
        "tokenizer": tokenizer.fingerprint,
    }
    if folder.resumes_from:
        lineage.require_same(folder.path, facts)
    folder.add_lineage(**facts)
    sizes = [src.estimated_text_bytes(source) for phase in phases for source in phase.sources]
    # Two bytes of text a token is the worst that real tokenizers do on real text.
    needed = sum(size or 0 for size in sizes) / 2 * shards.dtype_for(tokenizer.vocab_size).itemsize
    rundir.require_disk(folder.path, needed, "the token shards")


def _sizes(split: shards.SplitIndex) -> dict[str, int]:
    return {"tokens": split.num_tokens, "bytes": split.num_bytes, "documents": split.num_documents}
