"""Settings of `fledge rlhf`; values and their reasons are in configs/rlhf/."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune.config import BatchConfig, LoraConfig, OptimConfig, Prompts
from fledge.config import (
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
from rlhf.trl_config import Answers, PairsConfig, PlainPrompts, PromptFiles, RewardName, SamplingConfig, ScoresConfig
from rlhf.trl_config import DpoConfig as DpoConfig
from rlhf.trl_config import GrpoConfig as GrpoConfig

Episodes = Annotated[int, Field(json_schema_extra={"unit": "episodes"})]
Nats = Annotated[float, Field(json_schema_extra={"unit": "nats"})]


class RolloutConfig(Config):
    """The answers that a step learns from."""

    episodes: Episodes = Field(128, ge=2, description="answers a step")
    at_once: Episodes = Field(128, ge=1, description="answers written side by side")


class PpoBatchConfig(Config):
    """How often, and in what portions, the answers of a step are learned from."""

    epochs: int = Field(4, ge=1, description="passes over the answers of a step")
    minibatch: Episodes = Field(32, ge=1, description="answers an optimizer update")
    microbatch: Episodes = Field(32, ge=1, description="answers in one forward and backward")


class PpoOptimConfig(Config):
    """AdamW for policy and critic, each its own."""

    learning_rate: float = Field(3e-5, gt=0, description="of the policy, the peak")
    critic_learning_rate: float = Field(1e-4, gt=0, description="of the critic, the peak")
    critic_warmup: Steps = Field(0, ge=0, description="first steps, in which the critic alone learns")
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="learning rates stay, or fall to 0 at the last step"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled, scaled by the learning rate")
    beta2: float = Field(0.95, gt=0, lt=1, description="decay of the second moment")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: not clipped")


class ClipConfig(Config):
    """How far one step may move policy and critic."""

    ratio: float = Field(0.2, gt=0, description="beyond 1 +- this a probability ratio earns nothing more")
    value: float = Field(0.2, ge=0, description="beyond this from the old value a critic earns nothing more; 0: free")
    stop_kl: float = Field(
        0.0,
        ge=0,
        description="from the policy that sampled, at which a step ends early; 0: never",
        json_schema_extra={"unit": "nats/token"},
    )
    entropy: float = Field(0.0, ge=0, description="weight of the entropy in the policy's loss")


class AdvantageConfig(Config):
    """Generalised advantage estimation."""

    discount: float = Field(1.0, gt=0, le=1, description="gamma, a token")
    trace: float = Field(0.95, ge=0, le=1, description="lambda, a token")
    whiten: bool = Field(True, description="to mean 0 and variance 1 over the tokens of a step")


class KlConfig(Config):
    """The price of leaving the reference."""

    idle = {("target", False): ("horizon",)}

    weight: float = Field(0.05, ge=0, description="beta, reward a nat; the first one where it is led to a target")
    estimator: Literal["k1", "k3"] = Field("k1", description="of each token's KL in the reward; see rlhf/kl.py")
    target: Nats = Field(0.0, ge=0, description="the weight is led to this KL; 0: it is fixed")
    horizon: Episodes = Field(2000, ge=1, description="how slowly it is led")
    budget: Nats = Field(0.0, ge=0, description="training ends when a step's mean KL an answer passes this; 0: never")

    @model_validator(mode="after")
    def _can_be_led(self) -> "KlConfig":
        if self.target and not self.weight:
            raise ValueError("--kl.weight 0 can't be led to --kl.target, as it is led by factors; give a first weight")
        return self


class RewardShapeConfig(ScoresConfig):
    """What is done to a score before it is learned from."""

    scale: Literal["none", "running"] = Field("none", description="running: by its standard deviation so far")
    clip: float = Field(0.0, ge=0, description="to +- this, after scaling; 0: not clipped")


class PpoValidationConfig(Config):
    """Answers to held-out prompts, always the same ones."""

    share: Ratio = Field(0.1, gt=0, lt=1, description="of the prompts to hold out, by a hash of the prompt")
    every: Steps = Field(5, ge=1, description="between checks")
    prompts: Prompts = Field(64, ge=1, description="answered in a check")
    at_end: Prompts = Field(
        256, ge=2, description="answered at the end, and by the parent, for the result and its interval"
    )
    samples: Prompts = Field(4, ge=0, description="of these answers kept in samples.jsonl")


class RlEngineConfig(Config):
    """What makes the updates: plain PyTorch in one process, or DeepSpeed in several."""

    kind: Literal["auto", "torch", "deepspeed"] = Field(
        "auto", description="auto: deepspeed where there are several processes or zero is given, else torch"
    )
    zero: int | None = Field(None, ge=0, le=2, description="DeepSpeed's ZeRO stage; none: 0")
    patience: float = Field(
        45.0, gt=0, description="until a process without progress is given up", json_schema_extra={"unit": "s"}
    )


class PpoRunConfig(RunConfig):
    """What every training command has; a step of PPO is more than an optimizer update."""

    max_steps: Steps = Field(
        1000, ge=1, description="of rollout.episodes answers each, learned from in several updates"
    )


class PpoConfig(TrainingConfig):
    """Train a model by PPO to write what a reward scores high, at a price for leaving the model it was.

    A step writes answers to prompts, has them scored, and learns from them in several optimizer updates.
    """

    stage: ClassVar[str] = "rlhf"
    command: ClassVar[str] = "ppo"
    distributed: ClassVar[bool] = True

    model: ModelName
    reward: RewardName
    prompts: PromptFiles
    plain_prompts: PlainPrompts = False
    gold: str | None = Field(
        None, description="a second reward that is measured and never learned from: shows over-optimisation"
    )
    max_bad_share: BadShare = 0.01
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    batch: PpoBatchConfig = PpoBatchConfig()
    optim: PpoOptimConfig = PpoOptimConfig()
    clip: ClipConfig = ClipConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    kl: KlConfig = KlConfig()
    scores: RewardShapeConfig = RewardShapeConfig()
    lora: LoraConfig = LoraConfig()
    validation: PpoValidationConfig = PpoValidationConfig()
    engine: RlEngineConfig = RlEngineConfig()
    run: PpoRunConfig = PpoRunConfig()

    @model_validator(mode="after")
    def _divides(self) -> "PpoConfig":
        if self.rollout.episodes % self.batch.minibatch:
            raise ValueError(
                f"batch.minibatch {self.batch.minibatch} does not divide rollout.episodes {self.rollout.episodes}"
            )
        if self.lora.dropout:
            raise ValueError("lora.dropout: PPO needs the probabilities it sampled with, so without dropout")
        return self


class CompareSamplingConfig(Config):
    """How many answers are compared, and how they are written."""

    reference: Answers = Field(256, ge=20, description="answers of the reference a prompt")
    policy: Answers = Field(16, ge=1, description="answers of each run a prompt")
    max_new_tokens: Tokens = Field(0, ge=0, description="an answer; 0: as the runs were trained, else 64")
    temperature: float = Field(
        0.0, ge=0, description="of sampling and log-probabilities; 0: as the runs were trained, else 1"
    )
    at_once: Answers = Field(128, ge=1, description="answers written side by side; changes none of them")


class CompareConfig(CommandConfig):
    """Compare runs by the reward that they reach at their KL to one reference, under the best that is possible there.

    Beside them stand the reference itself and best-of-n from its answers. The best possible is worked out from many
    answers of the reference; each run's gain is told as a share of it.
    """

    stage: ClassVar[str] = "rlhf"
    command: ClassVar[str] = "compare"

    runs: list[str] = Field(
        [],
        description="runs of ppo, dpo and grpo, or model folders; all from one reference",
        json_schema_extra={"argument": True},
    )
    reference: str = Field("", description="run or model folder; none: the model that the runs began with")
    reward: str = Field("", description="as for ppo; none: what the runs were trained on")
    unfinished_penalty: float | None = Field(
        None,
        ge=0,
        description="less reward for an answer that does not end by itself; none: as the runs were trained, else 0",
    )
    gold: str = Field("", description="a second reward, told beside the first; none: as the runs have it")
    prompts: list[str] = Field([], description="rows with prompts, repeatable; none: those of the runs")
    part: Literal["held-out", "all"] = Field("held-out", description="of the prompts")
    held_out_share: Ratio = Field(
        0.0, ge=0, lt=1, description="of the prompts, by a hash; 0: the smallest of the runs', else 0.1"
    )
    max_prompts: Prompts = Field(64, ge=2, description="the first so many")
    best_of: list[int] = Field([2, 4, 16], description="n of best-of-n; repeatable")
    sampling: CompareSamplingConfig = CompareSamplingConfig()
    seed: int = Field(0, ge=0, description="of the answers and of the intervals")
    device: Device = "auto"

    @model_validator(mode="after")
    def _is_possible(self) -> "CompareConfig":
        wrong = [n for n in self.best_of if not 2 <= n <= self.sampling.reference // 2]
        if wrong:
            half = self.sampling.reference // 2
            raise ValueError(f"--best-of {wrong[0]}: from 2 to {half}, half of the reference's answers")
        return self


class RewardConfig(TrainingConfig):
    """Teach a model which of two answers people prefer, beside simple baselines on the same pairs.

    Reads rows with a prompt (text, messages or conversations), `chosen` and `rejected`, or two of hh-rlhf's dialogues;
    writes a run with a model of one label, which PPO, GRPO and `fledge rlhf score` take as a reward.
    """

    stage: ClassVar[str] = "rlhf"
    command: ClassVar[str] = "reward"

    model: ModelName
    data: list[str] = Field(
        min_length=1, description="preferences: files, folders, globs, hub names, village:preferences; repeatable"
    )
    max_bad_share: BadShare = 0.01
    test_share: Ratio = Field(
        0.2, gt=0, lt=1, description="of the pairs to test on, by a hash of the prompt, whatever the seed"
    )
    margin: float = Field(
        0.0, ge=0, description="times a pair's preference_strength: by what the chosen answer should lead; 0: not used"
    )
    center_rewards: float = Field(
        0.01, ge=0, description="weight of the squared sum of both rewards in the loss: keeps them around 0"
    )
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    validation: PairsConfig = PairsConfig(share=0.05, pairs=512)
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
    input: list[str] = Field(min_length=1, description="rows to score: files, folders, globs, hub names; repeatable")
    answer_field: str = Field(
        "answer", description="column of the answer; rows without it: the completion, or the last message"
    )
    out: str | None = Field(None, description="file for the scores; none: shown")
    device: Device = "auto"
