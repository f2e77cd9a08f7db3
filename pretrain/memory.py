"""The memory that a GPU needs in a training step, part by part, worked out before anything is started."""

import dataclasses

import torch

from fledge.deepspeed_engine import BUCKET
from fledge.models import architecture
from fledge.models.architecture import LanguageModel
from fledge.models.loss import CHUNK, CHUNK_ELSEWHERE
from pretrain import optimizer, sizing
from pretrain.config import TrainConfig

GATHERED = 1_000_000_000  # DeepSpeed's default, which our engine leaves as it is: numbers in gathered weights


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one GPU when it needs most: in the backward pass of a step's last microbatch."""

    weights: int
    gradients: int
    optimizer: int  # moments, and the float32 masters that DeepSpeed keeps at ZeRO 1-3
    activations: int  # with autocast's bfloat16 copies of the matrices
    logits: int  # one chunk of them, and the gradients that the loss makes beside them
    buffers: int  # DeepSpeed's messages and gathered weights

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(dataclasses.astuple(self))


def on_meta(settings: TrainConfig, vocab_size: int) -> LanguageModel:
    """The model of a run as it stands in memory, but without any."""
    with torch.device("meta"):
        shape = sizing.architecture_of(settings.model, vocab_size)
        return architecture.build(shape, None, sizing.VOCABULARY_MULTIPLE)


def predict(
    settings: TrainConfig,
    model: LanguageModel,
    *,
    microbatch: int,
    num_gpus: int = 1,
    zero: int | None = None,
    recompute: bool | None = None,
) -> Memory:
    """The memory of one of `num_gpus` GPUs.

    Weights, gradients and optimizer as in the ZeRO paper (Rajbhandari et al. 2020, arXiv 1910.02054, figure 1), where
    stage 1 divides the optimizer's by the number of GPUs, 2 the gradients' too, 3 the weights' too; but with the
    number formats that our engine has: without `--engine.bf16 weights` all of them are float32. Activations as
    `ModelConfig.kept_bytes` has them; `--engine.recompute` keeps the blocks' inputs and one block's activations
    (Korthikanti et al. 2022, section 5). Nothing is taken off for what overlaps in time, so it is mostly too high:
    with one microbatch a step, gradients come while activations go, and a compiler keeps less.
    Args:
        model: from `on_meta`, or any other of this shape.
        microbatch: sequences a GPU, at once.
        zero, recompute: None is what the settings say.
    """
    zero = (settings.engine.zero or 0) if zero is None else zero
    recompute = settings.engine.recompute if recompute is None else recompute
    is_cpu = settings.run.device == "cpu"
    compute = 4 if settings.run.dtype == "float32" or (is_cpu and settings.run.dtype == "auto") else 2
    stream = compute if zero and settings.engine.bf16 == "weights" else 4
    numbers, tokens = sum(p.numel() for p in model.parameters()), microbatch * model.config.context
    chunk = CHUNK["cpu"] if is_cpu else CHUNK_ELSEWHERE
    loss = _loss(model, tokens, compute, stream, chunk, is_fused=settings.compile and not is_cpu)
    moments = moment_bytes(settings, model)

    def share(size: int, stage: int) -> int:
        return -(-size // num_gpus) if zero >= stage else size

    return Memory(
        weights=share(stream * numbers, 3),
        gradients=share(stream * numbers, 2),
        optimizer=share(moments + (4 * numbers if zero else 0), 1),
        activations=_activations(model, tokens, compute, stream, recompute, loss),
        logits=loss,
        buffers=(stream * BUCKET if zero else 0) + (stream * min(numbers, GATHERED) if zero == 3 else 0),
    )


def moment_bytes(settings: TrainConfig, model: LanguageModel) -> int:
    """float32 moments of all weights: AdamW has two of each, Muon one."""
    groups = optimizer.build(model, settings.optim).param_groups
    return sum((4 if group["kind"] == "muon" else 8) * sum(p.numel() for p in group["params"]) for group in groups)


def _activations(model: LanguageModel, tokens: int, compute: int, stream: int, recompute: bool, loss: int) -> int:
    """What the loss finds when it begins, and what the backward pass of the last block needs beyond the loss."""
    config = model.config
    block, edge = config.kept_bytes(compute, stream), stream * config.width
    working = 4 * compute * config.mlp_width  # an estimate: gradients around the MLP's nonlinearity, and factors
    kept, later = config.layers * block, working
    if recompute:
        kept, later = config.layers * edge, block + working
    # Autocast's copies live as long as the graph that uses them.
    matrices = sum(p.numel() for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2)
    copies = compute * matrices if stream > compute else 0
    return tokens * (kept + edge) + copies + max(0, tokens * later - loss)


def _loss(model: LanguageModel, tokens: int, compute: int, stream: int, chunk: int, is_fused: bool) -> int:
    """See `fledge.models.loss`: logits of a chunk, the last one's gradient, hidden states, gradients of these and of
    the head."""
    rows, width = model.head_weight.shape
    a_logit = 2 * compute if is_fused else 8 + (compute if compute < 4 else 0)  # else float32 twice
    if tokens > chunk:
        a_logit += compute
    head = rows * width * (4 + (compute if compute < stream else 0))
    return min(chunk, tokens) * rows * a_logit + head + 2 * tokens * stream * width
