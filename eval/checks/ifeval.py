"""IFEval's verifiable instructions: whether an answer does what its prompt asked for.

The 25 instructions as Zhou et al. 2023 (arXiv 2311.07911) define them, in code of our own. Two of the paper's
tools need data that is not there offline, so figures may differ from it by the rare item: sentences are split by
a rule here (the paper: Punkt), and languages are told by `eval.language` (the paper: langdetect).
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from eval.items import Ratio
from eval.language import language_of
from fledge.errors import DataError

_ABBREVIATIONS = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\b[A-Z])"
_SENTENCE_END = re.compile(
    rf"(?:(?<=[!?\u2026\u3002])|{_ABBREVIATIONS}\.)[\"'\u201d\u2019)\]*]*(?=\s+[\"'\u201c\u2018(\[*]*[^\sa-z])"
)


def follows(instruction: str, settings: dict[str, Any], answer: str) -> bool:
    """Whether an answer follows one instruction, strictly; an empty answer follows none.

    Args:
        instruction: its id, such as "keywords:existence".
        settings: its `kwargs` in the data; those that are null do not count.
    Raises:
        DataError: the instruction or one of its settings is unknown.
    """
    check = _CHECKS.get(instruction)
    if check is None:
        raise DataError(f"unknown instruction {instruction!r}; known: {', '.join(sorted(_CHECKS))}")
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        return bool(answer.strip()) and check(answer, **given)
    except TypeError as error:
        raise DataError(f"instruction {instruction!r} with settings {given}: {error}") from None


def follows_loosely(instruction: str, settings: dict[str, Any], answer: str) -> bool:
    """Whether an answer, or what is left without its first line, last line or asterisks, follows one instruction."""
    return any(follows(instruction, settings, variant) for variant in _variants(answer))


def check(row: dict[str, Any], answer: str) -> float:
    """The share of the instructions in a row (`instruction_id_list`, `kwargs`) that an answer follows strictly."""
    found = each(row, answer)
    return sum(found) / len(found)


def scores(row: dict[str, Any], answer: str) -> dict[str, float | Ratio]:
    """The paper's four figures: prompts and single instructions followed, strictly and loosely."""
    strict, loose = each(row, answer), each(row, answer, loosely=True)
    return {
        "prompt_strict": float(all(strict)),
        "prompt_loose": float(all(loose)),
        "instruction_strict": Ratio(sum(strict), len(strict)),
        "instruction_loose": Ratio(sum(loose), len(loose)),
    }


def each(row: dict[str, Any], answer: str, loosely: bool = False) -> list[bool]:
    """For each instruction of a row whether an answer follows it.

    Raises:
        DataError: the row has no instructions, or not as many settings.
    """
    names, settings = row.get("instruction_id_list"), row.get("kwargs")
    if not names or not isinstance(settings, list) or len(names) != len(settings):
        raise DataError("expected instruction_id_list and kwargs, one entry each an instruction")
    judge = follows_loosely if loosely else follows
    return [judge(name, given, answer) for name, given in zip(names, settings, strict=True)]


def _variants(answer: str) -> Iterator[str]:
    lines = answer.split("\n")
    for kept in (lines, lines[1:], lines[:-1], lines[1:-1]):
        text = "\n".join(kept).strip() if kept is not lines else answer
        yield text
        yield text.replace("*", "")


# --- the rules; each takes the answer and the instruction's settings ---


def _compares(count: int, relation: str, number: int) -> bool:
    if relation not in ("less than", "at least"):
        raise DataError(f"unknown relation {relation!r}; known: less than, at least")
    return count < number if relation == "less than" else count >= number


def _count(pattern: str, answer: str, flags: int = 0) -> int:
    return len(re.findall(pattern, answer, flags))


def _count_parts(parts: list[str]) -> int:
    """Parts with text; an empty first or last one does not count, an empty one between spoils it (-1)."""
    if any(not part.strip() for part in parts[1:-1]):
        return -1
    return sum(bool(part.strip()) for part in parts)


def _nth_paragraph_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = answer.split("\n\n")
    if sum(bool(part.strip()) for part in paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'\""))[0].lower() == first_word.lower()


def _postscript(answer: str, postscript_marker: str) -> bool:
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(spaced.get(postscript_marker, postscript_marker.lower()), answer.lower()))


def _highlighted_sections(answer: str, num_highlights: int) -> bool:
    found = re.findall(r"\*[^\n*]*\*", answer) + re.findall(r"\*\*[^\n*]*\*\*", answer)
    return sum(bool(part.strip("* ")) for part in found) >= num_highlights


def _json_format(answer: str) -> bool:
    text = re.sub(r"^```(?:json|Json|JSON)?|```$", "", answer.strip()).strip()
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _two_responses(answer: str) -> bool:
    parts = answer.split("******")
    answers = [part.strip() for part in parts if part.strip()]
    return _count_parts(parts) == 2 and answers[0] != answers[1]


_CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda answer, keywords: all(
        re.search(re.escape(keyword), answer, re.IGNORECASE) for keyword in keywords
    ),
    "keywords:frequency": lambda answer, keyword, frequency, relation: _compares(
        _count(re.escape(keyword), answer, re.IGNORECASE), relation, frequency
    ),
    "keywords:forbidden_words": lambda answer, forbidden_words: (
        not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)
    ),
    "keywords:letter_frequency": lambda answer, letter, let_frequency, let_relation: _compares(
        answer.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "language:response_language": lambda answer, language: language_of(answer) == language,
    "length_constraints:number_sentences": lambda answer, num_sentences, relation: _compares(
        len(_SENTENCE_END.findall(answer.strip())) + 1, relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda answer, num_paragraphs: (
        _count_parts(re.split(r"\s?\*\*\*\s?", answer)) == num_paragraphs
    ),
    "length_constraints:number_words": lambda answer, num_words, relation: _compares(
        _count(r"\w+", answer), relation, num_words
    ),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": lambda answer, num_placeholders: (
        _count(r"\[.*?\]", answer) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda answer, num_bullets: (
        _count(r"^\s*(?:\*[^*]|-).*$", answer, re.MULTILINE) == num_bullets
    ),
    "detectable_format:constrained_response": lambda answer: any(
        f"My answer is {choice}." in answer for choice in ("yes", "no", "maybe")
    ),
    "detectable_format:number_highlighted_sections": _highlighted_sections,
    "detectable_format:multiple_sections": lambda answer, section_spliter, num_sections: (
        _count(rf"{re.escape(section_spliter)}\s?\d+", answer) >= num_sections
    ),
    "detectable_format:json_format": _json_format,
    "detectable_format:title": lambda answer: any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", answer)),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda answer, prompt_to_repeat: (
        answer.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda answer, end_phrase: (
        answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": lambda answer: re.fullmatch(r'".*"', answer.strip(), re.DOTALL) is not None,
    "change_case:english_capital": lambda answer: answer.isupper() and language_of(answer) in ("en", None),
    "change_case:english_lowercase": lambda answer: answer.islower() and language_of(answer) in ("en", None),
    "change_case:capital_word_frequency": lambda answer, capital_frequency, capital_relation: _compares(
        sum(word.isupper() for word in re.findall(r"\w+(?:[-.]\w+)*", answer)), capital_relation, capital_frequency
    ),
    "punctuation:no_comma": lambda answer: "," not in answer,
}
