"""What a program can verify about an answer."""
# ruff: noqa: RUF001 (letters of other scripts)

import json
from pathlib import Path
from typing import Any

import pytest

from eval.checks import arithmetic, gsm8k, ifeval, village
from eval.language import language_of
from fledge.errors import DataError
from fledge.village.instructions import rows
from fledge.village.world import make_world

# For each of IFEval's instructions: its settings, answers that follow it, answers that do not.
EXAMPLES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["mom", "C++"]}, ["Mom likes c++."], ["Mom likes C."]),
    (
        "keywords:frequency",
        {"keyword": "story", "relation": "at least", "frequency": 2},
        ["Story upon story"],
        ["One story"],
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["cook"]}, ["The cookbook"], ["A Cook!"]),
    (
        "keywords:letter_frequency",
        {"letter": "T", "let_relation": "less than", "let_frequency": 2},
        ["a tea"],
        ["that"],
    ),
    ("language:response_language", {"language": "de"}, ["Das ist nicht für mich."], ["This is not."]),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        ["Dr. A. Smith paid 3.50 dollars. He left.", 'She said "Go." Then it rained'],
        ["One. Two! Three?"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb"],
        ["a\n\nb", "a\n***\n \n***\nb"],
    ),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, ["don't go"], ["go, now"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        ['a\n\n"Elm," b'],
        ["a\n\nElms b", "elm\n\nb", "a\n\nb\n\nelm"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]"], ["[a]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye\np. s. Hi"], ["Bye. Hi"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n - b"], ["* a\n**b**"]),
    ("detectable_format:constrained_response", {}, ["Well: My answer is no."], ["No."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* **b**"], ["*a* ** **"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1 a Section 2 b"],
        ["Section a Section 2"],
    ),
    ("detectable_format:json_format", {}, ['```json\n{"a": 1}\n```', "[1]"], ['{"a": 1', "So: [1]"]),
    ("detectable_format:title", {}, ["<<A>>\nb"], ["<< >>", "<A>"]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a\n******\na", "a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, [" say HI. Hi"], ["Hi"]),
    ("startend:end_checker", {"end_phrase": "Any more?"}, ['So. any more?"'], ["Any more? No."]),
    ("startend:quotation", {}, ['"a\nb"'], ['"a', '"']),
    ("change_case:english_capital", {}, ["THE END IS NEAR"], ["THE End"]),
    ("change_case:english_lowercase", {}, ["the end"], ["The end", "das ist nicht für mich"]),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 2},
        ["NASA did"],
        ["NASA and U.S. did"],
    ),
    ("punctuation:no_comma", {}, ["a b"], ["a, b"]),
]


@pytest.mark.parametrize(("name", "settings", "right", "wrong"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_an_instruction_tells_right_answers_from_wrong(
    name: str, settings: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [ifeval.follows(name, settings, answer) for answer in right] == [True] * len(right)
    assert [ifeval.follows(name, settings, answer) for answer in [*wrong, "", " \n"]] == [False] * (len(wrong) + 2)


def test_every_instruction_has_an_example() -> None:
    assert {example[0] for example in EXAMPLES} == set(ifeval._CHECKS)


def test_loose_checks_forgive_a_preamble_and_asterisks() -> None:
    answer = "Here you are,\n**my** answer"
    assert not ifeval.follows("punctuation:no_comma", {}, answer)
    assert ifeval.follows_loosely("punctuation:no_comma", {}, answer)
    assert ifeval.follows_loosely("startend:end_checker", {"end_phrase": "my answer"}, answer)


def test_null_settings_do_not_count() -> None:
    assert ifeval.follows("punctuation:no_comma", {"keywords": None}, "a b")


def test_a_row_scores_the_share_of_its_instructions() -> None:
    row = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    assert ifeval.each(row, "a b") == [True, False]
    assert ifeval.check(row, "a b") == 0.5


def test_wrong_instructions_are_named() -> None:
    with pytest.raises(DataError, match=r"unknown instruction 'punctuation:no_dash'; known: change_case"):
        ifeval.follows("punctuation:no_dash", {}, "a")
    with pytest.raises(DataError, match=r"instruction 'keywords:existence' with settings \{\}: .*keywords"):
        ifeval.follows("keywords:existence", {}, "a")
    with pytest.raises(DataError, match=r"unknown relation 'more than'; known: less than, at least"):
        ifeval.follows("length_constraints:number_words", {"relation": "more than", "num_words": 1}, "a")
    with pytest.raises(DataError, match="expected instruction_id_list and kwargs, one entry each"):
        ifeval.check({"instruction_id_list": ["punctuation:no_comma"]}, "a")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "This is the house that Jack built for me."),
        ("fr", "Je ne sais pas ce que vous voulez dire avec cette phrase."),
        ("es", "El perro está en la casa y no quiere salir con su dueño."),
        ("pt", "O cachorro não está em casa e você não sabe por que ele saiu."),
        ("it", "Il cane è nella casa e non si sa come sono arrivati gli altri."),
        ("vi", "Tôi không biết những người này là ai và họ đã ở đây."),
        ("ru", "Это не то, что я хотел сказать, но мы были там."),
        ("bg", "Това не е добре, защото аз съм тук и ще се върна с него."),
        ("ar", "هذا هو الكتاب الذي كان على الطاولة"),
        ("fa", "این کتاب را که از او بود برای شما آورد"),
        ("hi", "यह किताब मेरे लिए है और मैं इसे पढ़ने के लिए नहीं लाया"),
        ("mr", "हे पुस्तक माझे आहे आणि ते चांगले आहे"),
        ("ne", "यो किताब मेरो हो र म यो पढ्छु भने राम्रो हुन्छ"),
        ("kn", "ಇದು ನನ್ನ ಪುಸ್ತಕ"),
        ("pa", "ਇਹ ਮੇਰੀ ਕਿਤਾਬ ਹੈ"),
        ("ko", "이것은 내 책이다"),
        ("ja", "これは私の本です"),
        (None, "1234 !?"),
        (None, "zzz"),
    ],
)
def test_the_language_of_a_sentence_is_told(language: str | None, text: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she has 5 + 67 = 72.\n#### 72", "72"),
        ("#### $1,234.50 in all", "1234.50"),
        ("It is 12 - 5, so -7 degrees.", "-7"),
        ("10-5", "5"),
        ("The answer is 18.", "18"),
        ("no idea", "None"),
        ("#### none, but 3 before", "3"),
        ("3 apples ####", "None"),
    ],
)
def test_the_final_number_of_an_answer_is_found(text: str, number: str) -> None:
    assert str(gsm8k.final_number(text)) == number


def test_numbers_are_compared_by_value() -> None:
    assert gsm8k.check({"answer": "#### 1,200"}, "It costs $1200.00.") == 1
    assert gsm8k.check({"answer": "#### 1,200"}, "1201") == 0
    assert gsm8k.check({"answer": "#### 1,200"}, "no idea") == 0
    assert arithmetic.check({"continuation": "318"}, " 318, and 5+5=10") == 1
    assert arithmetic.check({"continuation": "318"}, "31") == 0


def test_rows_without_a_number_are_refused() -> None:
    with pytest.raises(DataError, match="expected a number in 'answer'"):
        gsm8k.check({"answer": "many"}, "5")
    with pytest.raises(DataError, match="expected a number in 'continuation'"):
        arithmetic.check({}, "5")


def test_the_village_knows_its_own_answers() -> None:
    for row in rows(make_world(), "test", 30):
        assert village.check(row, row["messages"][1]["content"]) == 1
        assert village.check(row, "") == 0
    with pytest.raises(DataError, match="no row of the village's instructions: it has no attribute"):
        village.check({"task": "fact", "truth": "x", "given": "", "world": "hamlet-0"}, "a")


@pytest.mark.skipif(not Path("../shared/data/ifeval").is_dir(), reason="IFEval's data is not there")
def test_every_instruction_of_ifeval_is_known() -> None:
    lines = Path("../shared/data/ifeval/input_data.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert len(ifeval.each(json.loads(line), "Some answer.", loosely=True)) >= 1
