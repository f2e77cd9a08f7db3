"""The floors: sums by another route, and no compressor below them."""

import lzma
import zlib
from collections import Counter, defaultdict
from math import exp, inf, log, log2

import pytest

from fledge.errors import DataError
from fledge.village.floors import fact_spans, floors, log_prob, log_prob_grammar
from fledge.village.stories import HELD_OUT_START, stories
from fledge.village.world import ATTRIBUTES, make_world

WORLD = make_world("hamlet")
TEXTS = list(stories(WORLD, HELD_OUT_START, 150))


def test_floors_are_the_log_probabilities_per_byte() -> None:
    both = floors(WORLD, TEXTS)
    num_bytes = sum(len(text) for text in TEXTS)
    assert both.num_bytes == num_bytes
    known, grammar = (sum(map(lambda text: f(WORLD, text), TEXTS)) for f in (log_prob, log_prob_grammar))  # noqa: C417
    assert both.world_bits_per_byte == pytest.approx(-known / log(2) / num_bytes)
    assert both.grammar_bits_per_byte == pytest.approx(-grammar / log(2) / num_bytes)


def test_difference_of_the_floors_is_the_prior_of_the_facts_told() -> None:
    spans = [span for text in TEXTS for span in fact_spans(WORLD, text)]
    assert floors(WORLD, TEXTS).knowledge_bits == pytest.approx(sum(span.prior_bits for span in spans))
    for span in spans:
        assert span.prior_bits == pytest.approx(log2(39 if span.attribute == "friend" else 24))


def test_fact_span_marks_the_value_in_the_text_and_the_value_is_true() -> None:
    people = {str(person): person for person in WORLD.people}
    for text in TEXTS:
        for span in fact_spans(WORLD, text):
            written = text[span.start : span.end].lower()
            assert written.removeprefix("an ").removeprefix("a ") == span.value.lower()
            assert str(people[span.person].facts[span.attribute]) == span.value


def test_one_who_knows_another_world_cannot_have_written_the_story() -> None:
    text = next(text for text in TEXTS if any(span.attribute == "pet" for span in fact_spans(WORLD, text)))
    span = next(span for span in fact_spans(WORLD, text) if span.attribute == "pet")
    other = "owl" if span.value != "owl" else "cat"
    lie = text.replace(span.value, other).replace(" a owl", " an owl").replace(" an cat", " a cat")
    assert log_prob(WORLD, text) > -inf
    assert log_prob(WORLD, lie) == -inf
    assert log_prob_grammar(WORLD, lie) == pytest.approx(log_prob_grammar(WORLD, text))
    assert log_prob_grammar(WORLD, "Once upon a time.") == -inf
    with pytest.raises(DataError, match="not a story of hamlet-0"):
        floors(WORLD, [lie])


def test_sampled_openings_come_as_often_as_their_probability() -> None:
    # Probability of all stories told by one opening template, from the rule's weight, against 2000 stories.
    rule = WORLD.grammar.rules["opening"]
    starts = Counter(text.split()[0] for text in stories(WORLD, 0, 2000))
    for first, k in (("On", 2), ("Nobody", 5), ('"What', 4)):
        expected = rule.weights[k] / len(rule.tickets)
        assert abs(starts[first] / 2000 - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5


def test_inverse_probabilities_of_sampled_short_texts_count_the_texts() -> None:
    # E[1 / p(text)] = number of texts, exactly, if p is proper and each text is one derivation.
    grammar, rule = WORLD.grammar, "pass"
    from fledge.village.random_stream import Stream

    stream, names = (
        Stream(1),
        dict(zip("abcht", [*WORLD.people[:3], WORLD.people[0], WORLD.tables["thing"].values[0]], strict=True)),
    )
    inverse = []
    for _ in range(4000):
        text = grammar.write(rule, stream.__next__, dict(names))
        (steps,) = grammar.parse(rule, text, names)
        inverse.append(exp(-sum(step.nats for step in steps)))
    moods = len(WORLD.tables["mood"].values)
    assert sum(inverse) / 4000 == pytest.approx(2 * (3 + moods), rel=0.1)


def bits_per_byte_of_5_grams(train: str, test: str) -> float:
    """Character 5-gram model, orders mixed by Witten-Bell: at each order, weight n / (n + types) to the counts."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for order in range(5):
        for k in range(order, len(train)):
            counts[train[k - order : k]][train[k]] += 1
    bits = 0.0
    for k in range(len(test)):
        p = 1 / 256
        for order in range(5):
            if k >= order and (seen := counts.get(test[k - order : k])):
                total = seen.total()
                p = (seen[test[k]] + len(seen) * p) / (total + len(seen))
        bits -= log2(p)
    return bits / len(test)


def test_no_compressor_and_no_5_gram_comes_below_the_world_floor() -> None:
    train = "\n".join(stories(WORLD, 0, 1500))
    test = "".join(TEXTS)
    floor = floors(WORLD, TEXTS).world_bits_per_byte
    compressed = [
        (len(pack((train + test).encode())) - len(pack(train.encode()))) * 8 / len(test)
        for pack in (zlib.compress, lzma.compress)
    ]
    assert min(*compressed, bits_per_byte_of_5_grams(train, test)) > 2 * floor


def test_knowledge_runs_from_nothing_at_the_grammar_floor_to_all_at_the_world_floor() -> None:
    both = floors(WORLD, TEXTS)
    assert both.known_share(both.grammar_bits_per_byte) == 0
    assert both.known_share(both.world_bits_per_byte) == pytest.approx(1)
    assert both.known_bits(both.world_bits_per_byte) == pytest.approx(both.knowledge_bits)
    assert both.known_share(both.grammar_bits_per_byte + 0.1) < 0


def test_bits_of_all_facts_are_the_logarithm_of_the_number_of_worlds() -> None:
    assert WORLD.facts_bits == pytest.approx(40 * (7 * log2(24) + log2(39)))
    assert len(ATTRIBUTES) == 8


def test_floors_refuse_what_is_no_whole_story() -> None:
    with pytest.raises(DataError, match="not a story of hamlet-0"):
        floors(WORLD, [TEXTS[0][:100]])
    with pytest.raises(DataError, match="no stories"):
        floors(WORLD, [])
