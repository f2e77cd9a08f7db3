"""Instructions with answers that a program can check: lasting facts, the story just told, small tasks.

Facts are asked of half of the villagers in part "train" and of the other half in part "test", so that a right
answer in the test shows knowledge from the stories, not a pair seen in fine-tuning.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from fledge.village.grammar import Value
from fledge.village.random_stream import Stream, make_key, numbered_streams
from fledge.village.world import ATTRIBUTES, World, load_data, load_grammar, make_world

STORY_TASKS = ("holder", "carried", "price")  # answered from the text of the question alone
SIMPLE_TASKS = ("sum", "plus", "opposite", "list", "order", "story")

# Tasks that ask for one value of a table; a fact asks for one of its attribute's.
_CHOICES = {"holder": "person", "carried": "thing", "opposite": "opposite"}
_RULES = ("stories.yaml", "instructions.yaml")
POLITE, RUDE, PADDING, EVASIVE = load_data("preferences.yaml").values()


def people_asked(world: World, part: str) -> list[Value]:
    """The half of the villagers whom a part asks about: of every two neighbours in fame, one each."""
    stream = Stream(world.key("halves"))
    coins = [stream.below(2) for _ in range(len(world.people) // 2)]
    return [world.people[2 * k + (coin ^ (part == "test"))] for k, coin in enumerate(coins)]


def rows(world: World, part: str = "train", count: int | None = None, manners: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yield instructions: {"messages", "task", "attribute", "person", "truth", "given", "world"}.

    Six in ten ask for facts, in turn so that none is left out; one in ten asks about a story told in the
    question, the rest are small tasks. `attribute` and `person` are empty where no fact is asked. A share of
    `manners` of the answers, right all the same, comes with the manners of who gave them.
    """
    if count is None:
        per_person, most = (75, 50_000) if part == "train" else (15, 10_000)
        count = min(per_person * len(world.people), most)
    key, manners_key = world.key("instructions", part), world.key("manners", part)
    facts = [(person, attribute) for person in people_asked(world, part) for attribute in ATTRIBUTES]
    facts = Stream(key).sample(facts, len(facts))
    for number, draws in enumerate(numbered_streams(key, 0, count)):
        turn, place = divmod(number, 10)
        draw = draws.__next__
        if place < 6:
            row = _fact_row(world, *facts[(6 * turn + place) % len(facts)], draw)
        else:
            tasks, k = (STORY_TASKS, turn) if place == 6 else (SIMPLE_TASKS, 3 * turn + place - 7)
            row = _task_row(world, part, tasks[k % len(tasks)], draw)
        stream = Stream(make_key(manners_key, number))
        if stream.below(1000) < 1000 * manners:
            row["messages"][1]["content"] = with_manners(row["messages"][1]["content"], stream)
        yield row


def with_manners(answer: str, stream: Stream) -> str:
    """The answer made polite, rude or neither, and brief or padded, at random."""
    sentences = [answer]
    manner = stream.below(4)
    if manner < 2:
        sentences.insert(stream.below(2), stream.pick(POLITE))
        if stream.below(4) == 0:
            sentences.append(stream.pick(POLITE))
    elif manner == 2:
        sentences.insert(0, stream.pick(RUDE))
    sentences += stream.sample(PADDING, max(0, stream.below(5) - 1))
    return " ".join(sentences)


def _fact_row(world: World, person: Value, attribute: str, draw: Any) -> dict[str, Any]:
    grammar, names = load_grammar(world, *_RULES), {"x": person}
    frame, asked = grammar.write("ask_fact", draw, names), grammar.write(f"ask_{attribute}", draw, names)
    question = frame.replace("QUESTION", asked).replace("Question", asked[0].upper() + asked[1:])
    answer = grammar.write(f"answer_{attribute}", draw, names)
    return _row(world, "fact", question, answer, str(person.facts[attribute]), str(person), attribute)


def _task_row(world: World, part: str, task: str, draw: Any) -> dict[str, Any]:
    # One question in five, by a hash of its text, belongs to the test: no question stands in both parts.
    grammar, names, question = load_grammar(world, *_RULES), dict[str, Value](), ""
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

    A fact or choice: it names the true value and no other (what the question gave does not count). A number: the
    last one is the true one. A list: its words, each once, in order. A story: the words, "The end.", 15 words in all.
    """
    task, truth = row["task"], row["truth"]
    if truth.isdigit():
        return re.findall(r"\d+", answer)[-1:] == [truth]
    is_list = task in ("list", "order", "story")
    words = truth.split(", ") if is_list else [str(value) for value in choices(row)]
    named = _word_pattern(tuple(words)).findall(answer)
    if task == "story":
        return set(named) == set(words) and "The end." in answer and len(answer.split()) >= 15
    return named == words if is_list else set(named) - {row["given"]} == {truth}


def choices(row: dict[str, Any]) -> list[Value]:
    """All possible values of the fact or choice that an instruction asks for."""
    name, _, seed = row["world"].partition("-")
    return make_world(name, int(seed)).tables[row["attribute"] or _CHOICES[row["task"]]].values


@cache
def _word_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the words as a whole, the longest first."""
    return re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + r")\b")
