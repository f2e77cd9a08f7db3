"""The commands of `fledge eval`."""

from fledge.options import StageGroup

cli = StageGroup("eval", ["run", "compare", "overlap", "report"], help="The same numbers for every model.")
