"""The commands of `fledge rlhf`."""

from fledge.options import StageGroup

cli = StageGroup(
    "rlhf",
    ["reward", "score", "ppo", "dpo", "grpo", "compare"],
    help="Reward models, PPO, DPO, GRPO, and their comparison.",
)
