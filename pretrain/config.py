"""Settings of `fledge pretrain`; values and their reasons are in configs/pretrain/."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fledge.config import (
    RUN_RESUMABLE,
    SAMPLE_PROMPTS,
    CommandConfig,
    Config,
    Device,
    ModelName,
    Ratio,
    RunConfig,
    Steps,
    Tokens,
    checked_duration,
)
from tokenizer.config import Megabytes, TextInputConfig

Sequences = Annotated[int, Field(json_schema_extra={"unit": "sequences"})]


class ModelConfig(Config):
    """The shape of the model to make; with --init the parent's holds, but for a smaller context."""

    architecture: str = Field("qwen3", description="a module in fledge/models: gpt2, qwen3, nanochat")
    context: Tokens = Field(256, ge=2, description="longest input")
    layers: int = Field(4, ge=1, description="transformer blocks")
    width: int = Field(128, ge=8, description="of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads")
    kv_heads: int | None = Field(None, ge=1, description="key/value heads (grouped-query attention); none: as heads")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped, where the architecture has it")
    tie_embeddings: bool | None = Field(None, description="share input and output embeddings; none: as the authors do")


class BatchConfig(Config):
    """How much text goes into one optimizer step."""

    sequences: Sequences = Field(16, ge=1, description="of one context each in a step")
    microbatch: int | None = Field(
        None,
        ge=1,
        description="a process, in one forward and backward; must divide `sequences`; none: all",
        json_schema_extra={"unit": "sequences"},
    )

    @model_validator(mode="after")
    def _divides(self) -> "BatchConfig":
        if self.microbatch and self.sequences % self.microbatch:
            raise ValueError(f"microbatch {self.microbatch} does not divide sequences {self.sequences}")
        return self


class EngineConfig(Config):
    """What makes the steps: plain PyTorch in one process, or DeepSpeed in one or several."""

    kind: Literal["auto", "torch", "deepspeed"] = Field(
        "auto", description="auto: deepspeed where there are several processes or a ZeRO stage, else torch"
    )
    zero: int | None = Field(
        None,
        ge=0,
        le=3,
        description="what DeepSpeed shares out over the processes. 1: optimizer, 2: and gradients, 3: and weights; "
        "none: nothing",
    )
    bf16: Literal["autocast", "weights"] = Field(
        "autocast",
        description="what DeepSpeed makes of run.dtype bfloat16. autocast: as the plain engine does; weights: kept in "
        "bfloat16, with float32 masters",
    )
    recompute: bool = Field(
        False, description="keep no activations in the blocks: less memory, about a third more time"
    )
    patience: float = Field(
        45,
        gt=0,
        description="until a process that makes no progress is given up; without a sign of life after a third of it",
        json_schema_extra={"unit": "s"},
    )

    @model_validator(mode="after")
    def _belongs_to_deepspeed(self) -> "EngineConfig":
        if self.kind == "torch" and self.zero is not None:
            raise ValueError("ZeRO is DeepSpeed's; leave out --engine.zero, or use --engine.kind deepspeed")
        if self.bf16 == "weights" and not self.zero:
            raise ValueError("bfloat16 weights need a ZeRO stage that keeps their masters; add --engine.zero 1")
        return self


class OptimConfig(Config):
    """The optimizer: AdamW for all weights, or Muon for the 2-D ones of the blocks and AdamW for the rest."""

    idle = {("optimizer", "adamw"): ("muon_learning_rate", "momentum")}

    optimizer: Literal["muon", "adamw"] = Field("muon", description="muon: for 2-D weights, AdamW for the rest")
    learning_rate: float = Field(3e-3, gt=0, description="AdamW's peak")
    muon_learning_rate: float = Field(0.02, gt=0, description="Muon's peak")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, scaled by the learning rate; 2-D weights only")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: not clipped")


class ScheduleConfig(Config):
    """The learning rate over a run, as a share of its peak."""

    idle = {("kind", "cosine"): ("decay",)}

    kind: Literal["wsd", "cosine"] = Field("wsd", description="wsd: warmup, stable, linear decay")
    warmup: float = Field(0.02, ge=0, le=1, description="share of the steps until the peak")
    decay: float = Field(0.5, ge=0, le=1, description="share of the steps at the end that decay (wsd)")
    floor: float = Field(0.0, ge=0, le=1, description="last learning rate as a share of the peak")

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} together are more than the whole run")
        return self


class ValidationConfig(Config):
    """The check on held-out text; the end of a run always measures all of it."""

    every: Steps = Field(100, ge=1, description="between checks")
    sequences: Sequences = Field(64, ge=1, description="read in a check during the run")


class SamplesConfig(Config):
    """Texts written by the model while it learns, to samples.jsonl."""

    every: Steps = Field(200, ge=0, description="between samples; 0: none")
    prompts: list[str] = Field(list(SAMPLE_PROMPTS), description="beginnings to continue")
    max_new_tokens: Tokens = Field(40, ge=1, description="written a prompt")
    temperature: float = Field(0.8, ge=0, description="of sampling; 0: greedy")


class GuardConfig(Config):
    """What happens when the loss goes wrong."""

    max_skips: Steps = Field(5, ge=0, description="non-finite steps in a row left out before rolling back")
    spike: float = Field(4.0, gt=1, description="roll back when the loss exceeds its running mean by this many nats")
    max_rollbacks: int = Field(2, ge=0, description="to the last good checkpoint before the run stops with an error")


class TrainConfig(CommandConfig):
    """Pretrain a GPT on token shards, from random weights or (--init) from any parent.

    Reads the shards of `fledge pretrain prepare`; writes a run with a Hugging Face model folder.
    """

    stage: ClassVar[str] = "pretrain"
    command: ClassVar[str] = "train"
    trains: ClassVar[bool] = True
    distributed: ClassVar[bool] = True
    resumable: ClassVar[dict[str, Literal["any", "more"]]] = {
        **RUN_RESUMABLE,
        "data": "any",  # elsewhere; what is in it may not change
        "engine.patience": "any",
        "profile": "any",
    }
    idle = {
        ("size", True): (
            "model.layers",
            "model.width",
            "model.heads",
            "model.kv_heads",
            "batch.sequences",
            "optim.learning_rate",
        )
    }

    data: str = Field(description="token shards: a `pretrain prepare` run, or its shards folder")
    init: str | None = Field(None, description="continue from this model (run, folder or hub name)")
    size: int | None = Field(
        None, ge=1, description="one dial: depth; sets layers, width, heads, batch and learning rates together"
    )
    time_budget: str | None = Field(
        None, description="train this long (90s, 3m, 1h30m); the steps are fixed by a probe before step 0"
    )
    compile: bool = Field(
        False, description="compile the blocks first, half a minute: faster in bfloat16, slower in float32 on a CPU"
    )
    profile: Steps = Field(
        0, ge=0, description="traced after the first six, to RUN/profile: trace.json.gz and operators.md; 0: none"
    )
    engine: EngineConfig = EngineConfig()
    model: ModelConfig = ModelConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    guard: GuardConfig = GuardConfig()
    run: RunConfig = RunConfig()

    _budget = checked_duration("time_budget")

    @model_validator(mode="after")
    def _has_one_shape(self) -> "TrainConfig":
        if self.init and self.size is not None:
            raise ValueError("--init and --size exclude each other: the shape is that of the parent")
        return self


class _ClusterConfig(CommandConfig):
    """What `fledge plan` asks besides a run's settings."""

    gpus: int = Field(1, ge=1, description="that train together")
    gpu_memory: float = Field(80, gt=0, description="of each", json_schema_extra={"unit": "GB"})
    gpu_tflops: float = Field(
        989, gt=0, description="of each, nominal, dense bfloat16; an H100's", json_schema_extra={"unit": "TFLOP/s"}
    )
    mfu: Ratio = Field(
        0.4,
        gt=0,
        le=1,
        description="share of them that is used, an assumption; llm.c's published 463,000 tokens/s of GPT-2 124M on "
        "an H100 are 0.40",
    )
    tokens_per_s: float | None = Field(
        None,
        gt=0,
        description="measured on one GPU without --engine.recompute; replaces the assumption",
        json_schema_extra={"unit": "tokens/s"},
    )
    price: float | None = Field(None, ge=0, description="of one GPU for an hour, in any currency")
    vocab_size: Tokens = Field(50257, ge=1, description="where --data is not given; GPT-2's")


class PlanConfig(TrainConfig, _ClusterConfig):
    """What a run of `fledge pretrain train` will take on GPUs: memory by part, time, cost. Trains nothing.

    --config and all other options are those of `fledge pretrain train`.
    """

    command: ClassVar[str] = "plan"
    configs_of: ClassVar[str | None] = "train"
    makes_run: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    idle = {**TrainConfig.idle, ("data", True): ("vocab_size",), ("tokens_per_s", True): ("gpu_tflops", "mfu")}

    data: str = Field("", description="token shards, for the size of their vocabulary")

    @model_validator(mode="after")
    def _has_a_shape(self) -> "PlanConfig":
        if self.init:
            raise ValueError("--init: a plan takes the shape from the group 'model'; leave it out")
        return self


class SampleConfig(CommandConfig):
    """Continue prompts with any model folder or causal hub model, streaming."""

    stage: ClassVar[str] = "pretrain"
    command: ClassVar[str] = "sample"
    makes_run: ClassVar[bool] = False

    model: ModelName
    prompt: list[str] = Field([], description="text to continue; repeatable; none: from the start of a document")
    num_samples: int = Field(1, ge=1, description="texts a prompt")
    max_new_tokens: Tokens = Field(100, ge=1, description="written a text")
    temperature: float = Field(0.8, ge=0, description="0: greedy")
    top_k: int = Field(0, ge=0, description="only among this many likeliest tokens; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="only among the likeliest tokens with this total probability")
    min_p: float = Field(0.0, ge=0, lt=1, description="only tokens at least this share as likely as the likeliest")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: seen tokens become less likely")
    stop: list[str] = Field([], description="stop where this text appears; repeatable")
    seed: int = Field(0, ge=0, description="of the sampling")
    device: Device = "auto"

    @model_validator(mode="after")
    def _stops_at_something(self) -> "SampleConfig":
        if "" in self.stop:
            raise ValueError("--stop '': an empty text stands everywhere; leave it out")
        return self


class PrepareConfig(TextInputConfig):
    """Turn text into token shards, ready for training.

    Reads what `fledge tokenizer train` reads; streams: memory grows by 16 to 48 bytes a document and by nothing else.
    """

    stage: ClassVar[str] = "pretrain"
    command: ClassVar[str] = "prepare"
    resumable: ClassVar[dict[str, Literal["any", "more"]]] = {"threads": "any", "checkpoint_megabytes": "any"}
    idle = {(other, True): ("validation_share",) for other in ("validation_input", "validation_tail")}

    tokenizer: str = Field(description="a tokenizer run, a model folder, GPT-2's own files or a hub name")
    validation_input: list[str] = Field([], description="text to hold out, instead of a share of the input")
    validation_share: Ratio = Field(0.02, gt=0, lt=1, description="of the text to hold out, by a hash of its content")
    validation_tail: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="hold out the last share of a single text instead",
        json_schema_extra={"unit": "ratio"},
    )
    min_bytes: int = Field(8, ge=0, description="shorter documents are rejected", json_schema_extra={"unit": "bytes"})
    encoder: Literal["auto", "tiktoken", "tokenizers"] = Field(
        "auto", description="auto: tiktoken where its ids are proven equal on a sample, else tokenizers"
    )
    threads: int = Field(0, ge=0, description="that encode; 0: one a core")
    checkpoint_megabytes: Megabytes = Field(
        64, gt=0, description="text between checkpoints; more where documents are many"
    )
    split: Literal["auto", "documents", "pieces", "tail", "input"] = Field(
        "auto", description="what is held out by; auto: as the other options say, and printed"
    )
    piece_characters: int = Field(
        0, ge=0, description="set by the run: pieces of the split", json_schema_extra={"unit": "characters"}
    )
    train_characters: int = Field(
        0, ge=0, description="set by the run: where the tail begins", json_schema_extra={"unit": "characters"}
    )

    @model_validator(mode="after")
    def _has_one_way_to_split(self) -> "PrepareConfig":
        if self.validation_input and self.validation_tail is not None:
            raise ValueError("--validation-input and --validation-tail exclude each other")
        unplanned = {"pieces": not self.piece_characters, "tail": not self.train_characters}
        if unplanned.get(self.split, self.split != "auto" and (self.split == "input") != bool(self.validation_input)):
            raise ValueError(
                f"--split {self.split} is set by the run; leave it out, and give --validation-input, "
                "--validation-tail or --validation-share"
            )
        return self
