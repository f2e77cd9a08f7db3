"""The commands of `fledge tokenizer`."""

from fledge.options import StageGroup

cli = StageGroup("tokenizer", ["train", "show", "compare"], help="Text to a tokenizer.")
