"""The commands of `fledge eval`."""

from fledge.options import StageGroup

cli = StageGroup("eval", ["run"], help="The same numbers for every model.")
