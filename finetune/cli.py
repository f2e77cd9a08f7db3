"""The commands of `fledge finetune`."""

from fledge.options import StageGroup

cli = StageGroup(
    "finetune",
    ["instruct", "classify", "predict", "chat"],
    help="A base model to one that answers, or that classifies.",
)
