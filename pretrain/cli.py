"""The commands of `fledge pretrain`."""

from fledge.options import StageGroup

cli = StageGroup("pretrain", ["prepare", "train", "sample", "plan"], help="Text and a tokenizer to a base model.")
