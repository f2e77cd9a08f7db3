"""`fledge pretrain sample`: text that a model writes, as it writes it."""

from typing import Any

from fledge import console, device
from fledge.endings import end_ids
from fledge.models import generation
from fledge.models.folder import find_model
from fledge.models.generation import Sampling
from fledge.models.loaded import load
from fledge.tokens import TextTokenizer
from pretrain.config import SampleConfig


def run(settings: SampleConfig) -> dict[str, Any]:
    """Continue each prompt `num_samples` times; see SampleConfig.

    Several texts are written side by side in one batch and shown when they are done; a single one streams.
    """
    path = find_model(settings.model)
    loaded = load(path, device=device.resolve_device(settings.device, "--device"))
    model, tokenizer = loaded.model, loaded.tokenizer
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        stop_ids=end_ids(path, tokenizer),
        stop_strings=tuple(settings.stop),
        seed=settings.seed,
    )
    sampling = generation.fitted(model, tokenizer, sampling)
    room = generation.context_of(model) - sampling.max_new_tokens
    for prompt, ids in zip(settings.prompt, tokenizer.encode_batch(settings.prompt), strict=True):
        if len(ids) > room:
            console.warn(f"--prompt {prompt[:20]!r}...: the context has room for the last {room} of {len(ids)} tokens")
    prompts = [prompt for prompt in settings.prompt or [""] for _ in range(settings.num_samples)]
    if len(prompts) == 1:
        texts = [_stream(model, tokenizer, prompts[0], sampling)]
    else:
        texts = generation.continue_texts(model, tokenizer, prompts, sampling)
        console.result("\n\n".join(prompt + text for prompt, text in zip(prompts, texts, strict=True)))
    samples = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    return {"model": str(path), "samples": samples}


def _stream(model: Any, tokenizer: TextTokenizer, prompt: str, sampling: Sampling) -> str:
    """Write one text to stdout piece by piece."""
    (ids,) = generation.prompt_ids(model, tokenizer, [prompt], sampling)
    text = ""
    console.write(prompt)
    for piece in generation.stream_text(model, tokenizer, ids, sampling):
        console.write(piece)
        text += piece
    console.write("\n")
    return text
