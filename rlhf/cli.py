"""The commands of `fledge rlhf`."""

from fledge.options import StageGroup

cli = StageGroup("rlhf", ["reward", "score"], help="Reward models, PPO, DPO and GRPO.")
