"""Instructions with answers that a program can check: lasting facts, the story just told, small tasks.

Facts are asked of half of the villagers in part "train" and of the other half in part "test", so that a right
answer in the test shows knowledge from the stories, not a pair seen in fine-tuning.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from fledge.village.grammar import Grammar, Value
from fledge.village.random_stream import Stream, make_key, numbered_streams
from fledge.village.world import ATTRIBUTES, VERSION, World, load_data, make_world

STORY_TASKS = ("holder", "carried", "price")  # answered from the text of the question alone
SIMPLE_TASKS = ("sum", "plus", "opposite", "list", "order", "story")

# How an answer is held against the truth, by task; facts are choices among the values of their attribute.
_NUMBERS = ("price", "sum", "plus")
_SEQUENCES = ("list", "order")
CHOICES = {"holder": "person", "carried": "thing", "opposite": "opposite"}


def people_asked(world: World, part: str) -> list[Value]:
    """The half of the villagers whom a part asks about: of every two neighbours in fame, one each."""
    stream = Stream(make_key(VERSION, "halves", world.name, world.seed))
    coins = [stream.below(2) for _ in range(len(world.people) // 2)]
    return [world.people[2 * k + (coin ^ (part == "test"))] for k, coin in enumerate(coins)]


def rows(world: World, part: str = "train", count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield instructions: {"messages", "task", "attribute", "person", "truth", "given", "world"}.

    Six in ten ask for facts, in turn so that none is left out; one in ten asks about a story told in the
    question, the rest are small tasks. `attribute` and `person` are empty where no fact is asked.
    """
    if count is None:
        count = (
            min(75 * len(world.people), 50_000) if part == "train" else min(15 * len(world.people), 10_000)
        )
    key = make_key(VERSION, "instructions", world.name, world.seed, part)
    facts = [(person, attribute) for person in people_asked(world, part) for attribute in ATTRIBUTES]
    facts = Stream(key).sample(facts, len(facts))
    for number, draws in enumerate(numbered_streams(key, 0, count)):
        turn, place = divmod(number, 10)
        draw = draws.__next__
        if place < 6:
            yield _fact_row(world, *facts[(6 * turn + place) % len(facts)], draw)
        elif place == 6:
            yield _task_row(world, part, STORY_TASKS[turn % len(STORY_TASKS)], draw)
        else:
            yield _task_row(world, part, SIMPLE_TASKS[(3 * turn + place - 7) % len(SIMPLE_TASKS)], draw)


def _fact_row(world: World, person: Value, attribute: str, draw: Any) -> dict[str, Any]:
    grammar, names = _grammar(world), {"x": person}
    frame, asked = grammar.write("ask_fact", draw, names), grammar.write(f"ask_{attribute}", draw, names)
    question = frame.replace("QUESTION", asked).replace("Question", asked[0].upper() + asked[1:])
    answer = grammar.write(f"answer_{attribute}", draw, names)
    return _row(world, "fact", question, answer, str(person.facts[attribute]), str(person), attribute)


def _task_row(world: World, part: str, task: str, draw: Any) -> dict[str, Any]:
    # One question in five, by a hash of its text, belongs to the test: no question stands in both parts.
    grammar, names, question = _grammar(world), dict[str, Value](), ""
    while not question or (make_key(question) % 5 == 0) != (part == "test"):
        names.clear()
        question = grammar.write(f"ask_{task}", draw, names)
    answer, truth = grammar.write(f"answer_{task}", draw, names), grammar.write(f"truth_{task}", draw, names)
    return _row(world, task, question, answer, truth, str(names["o"]) if task == "opposite" else "")


def _row(
    world: World, task: str, question: str, answer: str, truth: str, given: str = "", attribute: str = ""
) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {
        "messages": messages,
        "task": task,
        "attribute": attribute,
        "person": given if attribute else "",
        "truth": truth,
        "given": given,
        "world": f"{world.name}-{world.seed}",
    }


def check(row: dict[str, Any], answer: str) -> bool:
    """Whether an answer to an instruction is right.

    A fact or choice: of all possible values the answer names the true one and no other (what the question
    gave does not count). A number: the last number is the true one. A list: its words, each once, in that order. A
    story: it holds the words, "The end." and at least 15 words in all.
    """
    task, truth = row["task"], row["truth"]
    if task in _NUMBERS:
        return re.findall(r"\d+", answer)[-1:] == [truth]
    wanted = truth.split(", ")
    if task in _SEQUENCES:
        return _words_of(answer, tuple(wanted)) == wanted
    if task == "story":
        is_story = "The end." in answer and len(answer.split()) >= 15
        return is_story and set(_words_of(answer, tuple(wanted))) == set(wanted)
    name, _, seed = row["world"].partition("-")
    table = make_world(name, int(seed)).tables[row["attribute"] or CHOICES[task]]
    return set(_words_of(answer, tuple(map(str, table.values)))) - {row["given"]} == {truth}


def _words_of(text: str, words: tuple[str, ...]) -> list[str]:
    """Those of the words that stand in the text, in its order."""
    return _word_pattern(words).findall(text)


@cache
def _word_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the words as a whole, the longest first."""
    return re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + r")\b")


@cache
def _grammar(world: World) -> Grammar:
    source = load_data("stories.yaml")["grammar"] + load_data("instructions.yaml")["grammar"]
    return Grammar(source, world.tables, world.priors)
