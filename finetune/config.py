"""Settings of `fledge finetune`; values and their reasons are in configs/finetune/."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fledge.config import (
    SAMPLE_PROMPTS,
    BadShare,
    CommandConfig,
    Config,
    Device,
    ModelName,
    Ratio,
    RunConfig,
    Steps,
    Tokens,
    TrainingConfig,
)

Prompts = Annotated[int, Field(json_schema_extra={"unit": "prompts"})]


class BatchConfig(Config):
    """How many examples go into one optimizer step, and how often all are read."""

    examples: int = Field(8, ge=1, description="in an optimizer step", json_schema_extra={"unit": "examples"})
    microbatch: int | None = Field(
        None,
        ge=1,
        description="in one forward and backward; must divide `examples`; none: all",
        json_schema_extra={"unit": "examples"},
    )
    epochs: float | None = Field(
        None, gt=0, description="passes over the examples; none, or where it is fewer: run.max_steps"
    )

    @model_validator(mode="after")
    def _divides(self) -> "BatchConfig":
        if self.microbatch and self.examples % self.microbatch:
            raise ValueError(f"microbatch {self.microbatch} does not divide examples {self.examples}")
        return self


class OptimConfig(Config):
    """AdamW and its learning rate."""

    learning_rate: float = Field(1e-3, gt=0, description="the peak")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate falls after the peak"
    )
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps until the peak")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, scaled by the learning rate")
    beta2: float = Field(0.95, gt=0, lt=1, description="decay of the second moment")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: not clipped")


class ValidationConfig(Config):
    """The held-out part and the checks on it."""

    share: Ratio = Field(0.1, gt=0, lt=1, description="of the rows to hold out, by a hash of the prompt or text")
    every: Steps = Field(50, ge=1, description="between checks")
    patience: int = Field(
        0, ge=0, description="checks without a better one before training stops; 0: never stops early"
    )


class ExamplesConfig(ValidationConfig):
    """The held-out part, of which a check reads so few that it costs the same however many there are."""

    examples: int = Field(
        256, ge=1, description="held out ones read in each check, the same", json_schema_extra={"unit": "examples"}
    )


class LoraConfig(Config):
    """Low-rank adapters in place of training all weights."""

    idle = {("rank", False): ("alpha", "dropout", "targets")}

    rank: int = Field(0, ge=0, description="of the adapters; 0: all weights are trained")
    alpha: float | None = Field(None, gt=0, description="scale of the adapters; none: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapters' inputs dropped")
    targets: list[str] = Field(
        ["all-linear"], description="names of the layers that get adapters; all-linear: each but the head"
    )


class SplitConfig(Config):
    """The test part; taken by a hash of the text, so that no seed moves it."""

    idle = {("num_folds", False): ("fold",), ("num_folds", True): ("test_share",), ("labels", False): ("draw",)}

    test_share: Ratio = Field(0.2, gt=0, lt=1, description="of the texts to test on; near-duplicates stay on one side")
    num_folds: int = Field(0, ge=0, description="set by --folds: how many parts there are")
    fold: int = Field(0, ge=0, description="set by --folds: the part that is tested on")
    labels: int = Field(0, ge=0, description="set by --label-budget: rows to train on; 0: all")
    draw: int = Field(0, ge=0, description="set by --label-budget: seed of which rows these are")

    def is_test(self, share: float) -> bool:
        """Whether a text whose hash stands at this share of all hashes is tested on."""
        return int(share * self.num_folds) == self.fold if self.num_folds else share < self.test_share


class ClassifyConfig(TrainingConfig):
    """Fine-tune any model to tell classes of texts apart, beside simple baselines on the same rows.

    Reads rows with `text` (and `text_pair`) and `label`, or lines label<TAB>text; writes a run with a classifier.
    """

    stage: ClassVar[str] = "finetune"
    command: ClassVar[str] = "classify"
    idle = {("label_budget", False): ("label_steps", "label_draws"), ("folds", True): ("split.test_share",)}

    model: ModelName
    data: list[str] = Field(min_length=1, description="labelled texts: files, folders, globs; repeatable")
    max_bad_share: BadShare = 0.01
    folds: int = Field(
        0, ge=0, description="cross-validation: so many models, each tested on another part; 0: one model"
    )
    label_budget: str | None = Field(
        None, description="learning curve: models of so many labels each, such as 20,80,320"
    )
    label_steps: Steps = Field(
        100, ge=1, description="of --label-budget: least steps of a model, however few labels it has"
    )
    label_draws: int = Field(5, ge=1, description="of --label-budget: models of each number of labels")
    trained: Literal["all", "head"] = Field(
        "all", description="which weights are trained; with lora.rank the head and the adapters"
    )
    balance: Literal["none", "weights", "repeat"] = Field(
        "none", description="rare classes: count more in the loss (weights), or their rows come more often"
    )
    positive: str | None = Field(
        None, description="the label whose F1 is given; none: of two the second by name, of more the mean"
    )
    threshold: Literal["none", "f1", "accuracy"] = Field(
        "none", description="of two labels: choose the probability from which on it is positive, best on validation"
    )
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    split: SplitConfig = SplitConfig()
    validation: ExamplesConfig = ExamplesConfig(examples=1024)
    lora: LoraConfig = LoraConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _is_possible(self) -> "ClassifyConfig":
        if self.folds == 1:
            raise ValueError("--folds 1: one part can't be both trained and tested on; take 2 or more")
        if self.folds and self.label_budget:
            raise ValueError("--folds and --label-budget exclude each other")
        if self.lora.rank and self.trained == "head":
            raise ValueError("--lora.rank and --trained head exclude each other")
        self.budgets()
        return self

    def budgets(self) -> list[int]:
        """The numbers of labels of the learning curve."""
        try:
            numbers = [int(part) for part in (self.label_budget or "").split(",") if part]
        except ValueError:
            numbers = [0]
        if any(number < 4 for number in numbers):
            raise ValueError(f"--label-budget {self.label_budget}: expected numbers from 4 on, such as 20,80,320")
        return sorted(set(numbers))


class PredictConfig(CommandConfig):
    """Label texts with a classifier: one JSON line a row, with a probability for each label.

    Reads rows with `text` (and `text_pair`), or a plain file with a text a line; streams.
    """

    stage: ClassVar[str] = "finetune"
    command: ClassVar[str] = "predict"
    makes_run: ClassVar[bool] = False

    model: str = Field(
        description="a classify run, a classifier folder or a hub name", json_schema_extra={"argument": True}
    )
    input: list[str] = Field([], description="texts to label: files, folders, globs, hub names; repeatable")
    text: list[str] = Field([], description="a text to label; repeatable")
    out: str | None = Field(None, description="file for the labels; none: shown")
    batch_tokens: Tokens = Field(1024, ge=1, description="in one forward pass; changes no label")
    device: Device = "auto"


class AnswersConfig(Config):
    """Answers written by the model while it learns, to samples.jsonl, and at the end to see whether they stop."""

    prompts: list[str] = Field(
        list(SAMPLE_PROMPTS), description="asked at every check, besides the first two held-out ones"
    )
    max_new_tokens: Tokens = Field(64, ge=1, description="written an answer")
    at_end: Prompts = Field(64, ge=1, description="held-out prompts answered at the end")


class InstructConfig(TrainingConfig):
    """Teach a model to answer, from conversations or pairs of instruction and answer.

    Takes any model folder, run or hub model; the result is a model folder with a chat template.
    """

    stage: ClassVar[str] = "finetune"
    command: ClassVar[str] = "instruct"

    model: ModelName
    data: list[str] = Field(
        min_length=1,
        description="file, folder, glob, hub name or village:instructions, each perhaps with :WEIGHT; repeatable",
    )
    format: str = Field(
        "auto", description="of the rows: alpaca, messages, prompt_completion, sharegpt; auto: by the first row"
    )
    max_bad_share: BadShare = 0.01
    max_length: int | None = Field(
        None,
        ge=8,
        description="longer conversations are cut behind the last answer that fits; none: the context, at most 1024",
        json_schema_extra={"unit": "tokens"},
    )
    pack: Tokens = Field(
        512, ge=0, description="put conversations side by side into rows of this length; 0: each into its own"
    )
    lora: LoraConfig = LoraConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    validation: ExamplesConfig = ExamplesConfig()
    answers: AnswersConfig = AnswersConfig()
    run: RunConfig = RunConfig()


class ChatConfig(CommandConfig):
    """Talk to a model, streaming, with history; /help shows the commands. --prompt answers once; pipes work."""

    stage: ClassVar[str] = "finetune"
    command: ClassVar[str] = "chat"
    makes_run: ClassVar[bool] = False

    model: ModelName
    prompt: str | None = Field(None, description="answer this and stop")
    system: str | None = Field(None, description="what the model is told before the conversation")
    max_new_tokens: Tokens = Field(256, ge=1, description="of an answer")
    temperature: float = Field(0.7, ge=0, description="0: always the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="only among the likeliest tokens with this total probability")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: seen tokens become less likely")
    seed: int = Field(0, ge=0, description="of the sampling")
    device: Device = "auto"
