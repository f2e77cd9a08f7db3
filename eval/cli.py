"""The commands of `fledge eval`."""

from fledge.options import StageGroup

cli = StageGroup("eval", ["run", "compare", "overlap", "selfcheck", "report"], help="The same numbers for every model.")
