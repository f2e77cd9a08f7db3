"""A trained language model as the folder that its run publishes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from fledge import console
from fledge.models import adapters
from fledge.models import folder as model_folder
from fledge.models.generation import context_of
from fledge.tokens import TextTokenizer

PROVED_TOKENS = 64  # of each prompt, over which merged adapters are compared
MERGE_TOLERANCE = 1e-3  # of a logit: float32 over some dozen layers


def write(
    folder: Path, model: Any, tokenizer: TextTokenizer, stop_ids: Sequence[int], proving: Sequence[Sequence[int]]
) -> tuple[Any, dict[str, Any]]:
    """Write a transformers model, adapters merged in float32, and its tokenizer.

    Args:
        model: on any device; is on the CPU afterwards, and without adapters.
        stop_ids: ids that end an answer.
        proving: ids, with which merged adapters are proved to say the same.
    Returns:
        The model as loaded from the folder, and the proof where there were adapters: see `adapters.compare`.
    """
    model = model.to("cpu").float()
    written = None
    if hasattr(model, "merge_and_unload"):
        num_proved = min(PROVED_TOKENS, context_of(model) // 2)
        proving = [ids[:num_proved] for ids in proving]
        written = adapters.write(model, proving)
        model = model.merge_and_unload()
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=list(stop_ids), pad_token_id=tokenizer.special_ids.get(tokenizer.roles.get("pad_token", ""))
    )
    model.config.use_cache = True  # TRL turns it off
    model.save_pretrained(folder)
    (folder / model_folder.WEIGHTS).chmod((folder / model_folder.CONFIG).stat().st_mode)
    tokenizer.save(folder)
    saved = model_folder.load_model(folder)
    if written is None:
        return saved, {}
    proof = adapters.compare(written, adapters.write(saved, proving))
    if proof["merge_max_logit_difference"] > MERGE_TOLERANCE:
        console.warn(f"merged logits differ by {proof['merge_max_logit_difference']:.2g} from the adapter's")
    return saved, proof


def sentences(proof: dict[str, Any]) -> list[str]:
    """A proof in words; nothing where there were no adapters."""
    if "merge_max_logit_difference" not in proof:
        return []
    same = "the same" if proof["merge_same_greedy_tokens"] else "other"
    return [
        f"adapters merged: logits differ by at most {proof['merge_max_logit_difference']:.1g}, greedy answers "
        f"have {same} tokens"
    ]
