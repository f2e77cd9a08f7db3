"""What is in token shards, as a page to read: sizes, lengths, what was rejected and why."""

from collections.abc import Iterator

from fledge import console
from tokenizer.shards import Index, SplitIndex


def data_card(index: Index) -> str:
    """The summary of a `pretrain prepare` run, in Markdown."""
    facts = index.facts
    sizes = [
        [s.name, f"{s.num_documents:,}", f"{s.num_bytes:,}", f"{s.num_tokens:,}", _bytes_per_token(s)]
        for s in index.splits.values()
    ]
    lines = [
        "# Token shards",
        "",
        console.table(sizes, ["split", "documents", "bytes", "tokens", "bytes/token"]),
        "",
        f"- input: {facts['documents']:,} documents kept of {len(facts['sources'])} sources",
        f"- split: {facts['split']}",
        f"- tokenizer: vocabulary {index.tokenizer['vocab_size']}, {index.tokenizer['fingerprint'][:12]}",
        f"- encoded by {facts['encoder']}, stored as {index.dtype.name}",
        "",
        "## Lengths",
        "",
        console.table(list(_length_rows(facts["lengths"])), ["tokens", "documents"]),
        "",
        "## Rejected",
        "",
    ]
    if facts["rejects"]:
        rows = [[reason, f"{count:,}"] for reason, count in facts["rejects"].items()]
        lines += [console.table(rows, ["reason", "documents"]), "", "Each with its place in shards/rejects.jsonl."]
    else:
        lines.append("nothing")
    return "\n".join(lines)


def _length_rows(lengths: dict[str, int]) -> Iterator[list[str]]:
    for bits, count in lengths.items():
        low, high = (1 << int(bits) - 1, (1 << int(bits)) - 1) if int(bits) else (0, 0)
        yield [f"{low:,} to {high:,}", f"{count:,}"]


def _bytes_per_token(split: SplitIndex) -> str:
    num_text = split.num_tokens - split.num_documents - 1  # an end stands before the first document, too
    return f"{split.num_bytes / num_text:.3f}" if num_text > 0 else "-"
