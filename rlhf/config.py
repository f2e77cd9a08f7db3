"""Settings of `fledge rlhf`; values and their reasons are in configs/rlhf/."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finetune.config import BatchConfig, LoraConfig, OptimConfig, ValidationConfig
from fledge.config import RUN_RESUMABLE, CommandConfig, Config, RunConfig


class SamplingConfig(Config):
    """How the policy writes answers."""

    max_new_tokens: int = Field(64, ge=1, description="an answer", json_schema_extra={"unit": "tokens"})
    temperature: float = Field(1.0, gt=0, description="of sampling and of all log-probabilities")


class RewardConfig(CommandConfig):
    """Teach a model which of two answers people prefer, beside simple baselines on the same pairs.

    Reads rows with a prompt (text, messages or conversations), `chosen` and `rejected`, or two of hh-rlhf's dialogues;
    writes a run with a model of one label, which PPO, GRPO and `fledge rlhf score` take as a reward.
    """

    stage: ClassVar[str] = "rlhf"
    command: ClassVar[str] = "reward"
    trains: ClassVar[bool] = True
    resumable: ClassVar[dict[str, Literal["any", "more"]]] = {**RUN_RESUMABLE}

    model: str = Field(
        description="a run, a model folder or a hub name", json_schema_extra={"argument": True}
    )
    data: list[str] = Field(
        min_length=1,
        description="preferences: files, folders, globs, hub names, village:preferences; repeatable",
    )
    max_bad_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="of rows that can't be used and are passed over",
        json_schema_extra={"unit": "ratio"},
    )
    test_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="of the pairs to test on, by a hash of the prompt, whatever the seed",
        json_schema_extra={"unit": "ratio"},
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="times a pair's preference_strength: by what the chosen answer should lead; 0: not used",
    )
    center_rewards: float = Field(
        0.01, ge=0, description="weight of the squared sum of both rewards in the loss: keeps them around 0"
    )
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    validation: ValidationConfig = ValidationConfig(share=0.05)
    lora: LoraConfig = LoraConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _leaves_pairs(self) -> "RewardConfig":
        if self.test_share + self.validation.share >= 1:
            raise ValueError("--test-share and --validation.share leave nothing to train on")
        return self


class ScoreConfig(CommandConfig):
    """Score answers: one JSON line a row, in order, with its `score`.

    Reads rows with a prompt and an answer, or conversations that end with one; streams.
    """

    stage: ClassVar[str] = "rlhf"
    command: ClassVar[str] = "score"
    makes_run: ClassVar[bool] = False

    reward: str = Field(
        description="a reward model's run or folder, a shipped reward's name or a .py file, as in PPO's --reward",
        json_schema_extra={"argument": True},
    )
    input: list[str] = Field(
        min_length=1, description="rows to score: files, folders, globs, hub names; repeatable"
    )
    answer_field: str = Field(
        "answer", description="column of the answer; rows without it: the completion, or the last message"
    )
    out: str | None = Field(None, description="file for the scores; none: shown")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: cuda, else mps, else cpu"
    )
