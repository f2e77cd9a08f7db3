"""What a model of the village knows of it, in bits, on stories that are in no training data.

`known_share` is where the model stands between the grammar floor (0: it knows how stories are told and no fact) and the
world floor (1: it knows every fact). `facts_known` asks only for the facts, at the place where each is first told: the
share of their bits that the model does not need to be told; grammar does not enter it.
"""

from math import log

import numpy as np

from eval.config import TaskConfig
from eval.harness import DoesNotApply, ItemScore, Scores
from eval.items import Ratio
from eval.subject import Subject
from eval.token_tree import Tokens
from fledge.village import floors
from fledge.village.stories import HELD_OUT_START, stories
from fledge.village.world import World, make_world

NUM_STORIES = 200
HAS_OWN_DATA = True  # nothing is to be given


def measure(subject: Subject, task: TaskConfig, limit: int | None) -> Scores:
    """Bits per byte of held-out stories beside both floors, and of the facts told in them.

    Raises:
        DoesNotApply: it is no model of one village, or its context is shorter than every story.
    """
    if subject.village is None:
        raise DoesNotApply("the model was not trained on the stories of one village")
    world = make_world(*subject.village)
    told = list(stories(world, HELD_OUT_START, min(limit or NUM_STORIES, NUM_STORIES)))
    encoded = [subject.tokenizer.encode_with_offsets(text) for text in told]
    fitting = [i for i, (ids, _) in enumerate(encoded) if len(ids) <= subject.scorer.context]
    if not fitting:
        raise DoesNotApply(f"no story fits into the model's context of {subject.scorer.context} tokens")
    end = subject.tokenizer.end_of_text_id
    scores = subject.scorer.score([Tokens([end, *encoded[i][0]], 1) for i in fitting])
    items = [
        _item(world, told[i], encoded[i][1], -score.logprobs / log(2), f"story {i}")
        for i, score in zip(fitting, scores, strict=True)
    ]
    levels = floors.floors(world, [told[i] for i in fitting])
    baselines = {"bits_per_byte": levels.grammar_bits_per_byte, "known_share": 0.0, "facts_known": 0.0}
    ceilings = {"bits_per_byte": levels.world_bits_per_byte, "known_share": 1.0, "facts_known": 1.0}
    settings = {
        "stories": len(items),
        "stories_too_long": len(told) - len(items),
        "knowledge_bits": levels.knowledge_bits,
        "baseline": "the grammar floor",
    }
    return Scores(items, baselines, settings=settings, ceilings=ceilings)


def _item(world: World, text: str, offsets: list[tuple[int, int]], bits_N: np.ndarray, where: str) -> ItemScore:
    """One story: its bits, how far they lie below the grammar floor, and the bits of its facts."""
    num_bytes, bits = len(text.encode()), float(bits_N.sum())
    grammar, known = (-f(world, text) / log(2) for f in (floors.log_prob_grammar, floors.log_prob))
    values = {"bits_per_byte": Ratio(bits, num_bytes), "known_share": Ratio(grammar - bits, grammar - known)}
    spans = floors.fact_spans(world, text)
    if spans:
        prior = sum(span.prior_bits for span in spans)
        paid = sum(
            float(cost)
            for span in spans
            for (start, end), cost in zip(offsets, bits_N, strict=True)
            if start < span.end and end > span.start
        )
        values["facts_known"] = Ratio(prior - paid, prior)
    return ItemScore(where, "", "", values)
