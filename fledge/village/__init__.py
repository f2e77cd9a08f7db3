"""The village: a built-in world with known truth. Each module gives what its name says:

from fledge.village.spec import rows                the rows of "village:hamlet/stories", any world and kind
from fledge.village.world import make_world         who lives there and what is true of them
from fledge.village.floors import floors            the exact floors of stories, and knowledge in bits
from fledge.village.instructions import check       whether an answer is right
from fledge.village.messages import bayes_accuracy  how well messages can be told apart at best
from fledge.village.preferences import score        the gold reward
"""
