"""Conversations as examples to learn from: ids and labels, rows of several, batches, and the loss on them.

Shapes: B rows, T tokens, N tokens that are learned, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fledge import console, errors, trainer_bridge
from fledge.data.conversations import Conversation
from fledge.errors import DataError, ModelError
from fledge.models.loss import IGNORED
from fledge.tokens import TextTokenizer
from fledge.trainer_bridge import Batch
from tokenizer.chat import render

# input_ids, labels (IGNORED where nothing is learned), seq_lengths; int32 arrays, as lists take 50 bytes a token.
Example = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """Conversations as ids, one example each."""

    examples: list[Example]
    num_cut: int  # longer than the limit: only their first turns are there
    num_dropped: int  # no whole answer of theirs fits, or nothing in it can be learned


def tokenise(tokenizer: TextTokenizer, conversations: Sequence[Conversation], max_length: int) -> Examples:
    """Render conversations; labels are the ids where an assistant speaks or ends its turn.

    Raises:
        DataError: nothing, or everything, would be learned, or the chat template refuses a conversation.
    """
    examples: list[Example] = []
    cut = dropped = tokens = learned = 0
    with console.progress("tokenising", len(conversations), "conversations") as bar:
        for conversation in conversations:
            with errors.of_row(conversation.where):
                chat = render(tokenizer, conversation.messages)
            length = _fitting(chat.is_supervised, max_length)
            cut += length > 0 and any(chat.is_supervised[length:])
            ids, flags = chat.ids[:length], chat.is_supervised[:length]
            # The first token follows nothing, so it can't be learned.
            labels = [i if flag and place else IGNORED for place, (i, flag) in enumerate(zip(ids, flags, strict=True))]
            tokens, learned = tokens + len(ids), learned + sum(flags)
            if any(label != IGNORED for label in labels):
                arrays = {"input_ids": np.array(ids, np.int32), "labels": np.array(labels, np.int32)}
                examples.append(arrays | {"seq_lengths": [len(ids)]})
            else:
                dropped += 1
            bar.advance()
    if not examples or learned == tokens:
        what = "everything" if examples else "nothing"
        raise DataError(
            f"{conversations[0].where}: {what} in these {len(conversations)} conversations would be learned; check the "
            "chat template's {% generation %} blocks with fledge tokenizer show --chat, and --max-length "
            f"({max_length})"
        )
    return Examples(examples, cut, dropped)


def _fitting(flags: Sequence[bool], limit: int) -> int:
    """The length up to the last whole answer within the limit: half an answer would teach not to stop."""
    if len(flags) <= limit:
        return len(flags)
    return next((n for n in range(limit, 0, -1) if flags[n - 1] and not flags[n]), 0)


def pack(examples: Sequence[Example], row_tokens: int) -> list[Example]:
    """Examples side by side in rows; one that is longer than a row sets the rows' length. 0 packs nothing."""
    if not row_tokens:
        return list(examples)
    longest = max(len(example["input_ids"]) for example in examples)
    ids, labels = [e["input_ids"] for e in examples], [e["labels"] for e in examples]
    packed = trainer_bridge.pack(ids, labels, max(row_tokens, longest))
    return list(packed.with_format("numpy", dtype=np.int32))


def collate(rows: Sequence[Example]) -> Batch:
    """A batch (B, T), padded at the right; positions start again with each example in a row."""
    positions = [torch.cat([torch.arange(length) for length in row["seq_lengths"]]) for row in rows]
    return {
        "input_ids": _padded([torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]),
        "labels": _padded([torch.tensor(row["labels"], dtype=torch.long) for row in rows], IGNORED),
        # 0 over the padding, too: each padded place is an example of its own, which nothing looks at.
        "position_ids": _padded(positions),
        "num_tokens": sum(map(len, positions)),
    }


def _padded(rows: list[Tensor], filler: int = 0) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=filler)


def num_targets(batch: Batch) -> int:
    """How many tokens of a batch are learned."""
    return int((batch["labels"] != IGNORED).sum())


def loss(model: Any, batch: Batch) -> Tensor:
    """The summed loss in nats over the learned tokens; the head sees only the places that predict them."""
    labels_BT = batch["labels"]
    is_before_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    is_before_BT[:, :-1] = labels_BT[:, 1:] != IGNORED

    def pick(head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][is_before_BT][None],)

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        # Without a cache and a mask, transformers reads off the positions where one example ends.
        output = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    finally:
        hook.remove()
    targets_N = labels_BT[labels_BT != IGNORED]
    return nn.functional.cross_entropy(output.logits[0].float(), targets_N, reduction="sum")


def mean_loss(model: nn.Module, rows: Sequence[Example], batch_size: int) -> float:
    """The mean loss over all learned tokens of some rows, nats/token; in evaluation mode, without gradients."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), console.progress("held-out loss", len(rows), "rows") as bar:
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size])
            batch = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            total += float(loss(model, batch))
            count += num_targets(batch)
            bar.advance(len(rows[start : start + batch_size]))
    model.train(was_training)
    return total / count


def check_packing(model: nn.Module, row: Example, tolerance: float = 1e-3) -> None:
    """Make sure that examples in one row do not see each other.

    Raises:
        ModelError: they do; the architecture does not go by positions.
    """
    alone, start = [], 0
    for length in row["seq_lengths"]:
        piece = slice(start, start + length)
        alone.append({"input_ids": row["input_ids"][piece], "labels": row["labels"][piece], "seq_lengths": [length]})
        start += length
    together, apart = mean_loss(model, [row], 1), mean_loss(model, alone, 1)
    if not abs(together - apart) <= tolerance:
        raise ModelError(
            f"conversations that stand side by side in a row leak into each other in this architecture (loss "
            f"{together:.4f}, alone {apart:.4f}); use --pack 0"
        )
