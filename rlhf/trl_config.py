"""Settings of the commands that TRL trains, `fledge rlhf dpo` and `grpo`; `rlhf.config` gives them out."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune.config import BatchConfig, LoraConfig, OptimConfig, Prompts, ValidationConfig
from fledge.config import BadShare, Config, ModelName, RunConfig, Steps, Tokens, TrainingConfig

Answers = Annotated[int, Field(json_schema_extra={"unit": "answers"})]
RewardName = Annotated[
    str, Field(description="a reward model's folder, NAME or NAME:ARGUMENT of rlhf/rewards, or a file with score()")
]
PromptFiles = Annotated[
    list[str],
    Field(
        min_length=1,
        description="rows with prompt, messages, instruction or question: files, folders, globs; repeatable",
    ),
]
PlainPrompts = Annotated[
    bool, Field(description="prompts are text to go on with; the model's chat template is left away for good")
]


class SamplingConfig(Config):
    """How the policy writes answers."""

    max_new_tokens: Tokens = Field(64, ge=1, description="an answer")
    temperature: float = Field(1.0, gt=0, description="of sampling and of all log-probabilities")


class AnsweredConfig(ValidationConfig):
    """Held-out prompts and the answers to them, always the same ones."""

    prompts: Prompts = Field(64, ge=2, description="answered in a check")
    at_end: Prompts = Field(128, ge=2, description="answered before and after training")
    samples: Prompts = Field(4, ge=0, description="of the answers kept in samples.jsonl at each check")


class PairsConfig(ValidationConfig):
    """Held-out pairs, of which a check reads so few that it costs the same however many there are."""

    pairs: int = Field(256, ge=1, description="held-out pairs measured in a check", json_schema_extra={"unit": "pairs"})


class DpoValidationConfig(PairsConfig, AnsweredConfig):
    """Held-out pairs, and answers to their prompts."""


class DpoLossConfig(Config):
    """What is minimised; all of it is TRL's own."""

    kind: Literal["sigmoid", "ipo", "hinge", "robust"] = Field(
        "sigmoid",
        description="sigmoid: Rafailov et al. 2023, eq. 7; ipo: Azar et al. 2023; robust: Chowdhury et al. 2024",
    )
    beta: float = Field(0.1, gt=0, description="price of leaving the reference; ipo: its tau")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs believed to be the wrong way round")

    @model_validator(mode="after")
    def _is_used(self) -> "DpoLossConfig":
        if self.label_smoothing and self.kind != "robust":
            raise ValueError(f"loss.label_smoothing is of the robust loss alone, loss.kind is {self.kind}")
        return self


class DpoConfig(TrainingConfig):
    """Teach a model to prefer what was chosen to what was rejected, without a reward model (DPO).

    The reference is the model itself as it begins; with --lora.rank it is the same weights with adapters off.
    """

    stage: ClassVar[str] = "rlhf"
    command: ClassVar[str] = "dpo"

    model: ModelName
    data: list[str] = Field(
        min_length=1,
        description="rows of prompt, chosen and rejected: files, folders, globs, village:WORLD/preferences; repeatable",
    )
    max_bad_share: BadShare = 0.01
    max_length: int | None = Field(
        None,
        ge=8,
        description="longer pairs lose the beginning of their prompt; none: the context, at most 1024",
        json_schema_extra={"unit": "tokens"},
    )
    loss: DpoLossConfig = DpoLossConfig()
    sampling: SamplingConfig = SamplingConfig()
    lora: LoraConfig = LoraConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    validation: DpoValidationConfig = DpoValidationConfig()
    run: RunConfig = RunConfig()


class GroupConfig(Config):
    """The answers that are compared with each other, and how often they are learned from."""

    answers: Answers = Field(8, ge=2, description="to each prompt")
    steps: Steps = Field(1, ge=1, description="optimizer steps among which a batch of answers is dealt out")
    passes: int = Field(1, ge=1, description="over a batch of answers")
    at_once: Answers = Field(128, ge=1, description="answers written side by side")


class GrpoLossConfig(Config):
    """What is minimised; all of it is TRL's own."""

    kind: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = Field(
        "dapo", description="how the tokens' losses are averaged: by answer (grpo), by token (dapo, bnpo) ..."
    )
    beta: float = Field(0.04, ge=0, description="price of leaving the reference; 0: free, and not kept")
    clip: float = Field(0.2, gt=0, description="beyond 1 +- this a probability ratio earns nothing more")
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="whose standard deviation an answer's lead over its group is divided by"
    )


class ScoresConfig(Config):
    """What is done to a score before it is learned from."""

    unfinished_penalty: float = Field(
        1.0, ge=0, description="taken from the score of an answer that does not end by itself"
    )


class GrpoConfig(TrainingConfig):
    """Train a model to write what a reward scores high, each answer against others to the same prompt (GRPO).

    Rewards are those of `fledge rlhf ppo`. Checkpoints fall where no answers are left over.
    """

    stage: ClassVar[str] = "rlhf"
    command: ClassVar[str] = "grpo"

    model: ModelName
    reward: RewardName
    prompts: PromptFiles
    plain_prompts: PlainPrompts = False
    max_bad_share: BadShare = 0.01
    group: GroupConfig = GroupConfig()
    loss: GrpoLossConfig = GrpoLossConfig()
    scores: ScoresConfig = ScoresConfig()
    sampling: SamplingConfig = SamplingConfig()
    lora: LoraConfig = LoraConfig()
    batch: BatchConfig = BatchConfig(examples=64)
    optim: OptimConfig = OptimConfig()
    validation: AnsweredConfig = AnsweredConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _divides(self) -> "GrpoConfig":
        written = self.batch.examples * self.group.steps
        for name, value in (("answers", written), ("at_once", self.group.at_once)):
            if value % self.group.answers:
                what = "batch.examples x group.steps" if name == "answers" else "group.at_once"
                raise ValueError(f"group.answers {self.group.answers} does not divide {what} ({value})")
        if self.lora.dropout:
            raise ValueError("lora.dropout: GRPO needs the probabilities it sampled with, so without dropout")
        return self
