"""Which language a text is in, by its script and its commonest words.

For the languages that IFEval asks for. No model: the script decides where it can; among
languages of one script, the one of whose commonest words the text has most. Texts of a sentence or more are
told apart reliably; a text of which nothing is known gets no answer rather than a guess.
"""

import unicodedata
from collections import Counter
from pathlib import Path

import regex
import yaml

_FILE = Path(__file__).with_suffix(".yaml")
# Marks above and below letters belong to the word, in Indian scripts most of all.
_WORD = regex.compile(r"[\p{L}\p{M}]+")
# Language -> script, commonest words.
_WORDS: dict[str, list[str]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def language_of(text: str) -> str | None:
    """The two-letter code of a text's language, of those in language.yaml; None where nothing tells it."""
    scripts = Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())
    if not scripts:
        return None
    # Japanese mixes three scripts; only it has Hiragana.
    script = "HIRAGANA" if scripts["HIRAGANA"] else scripts.most_common(1)[0][0]
    candidates = {language: words for language, (its, words) in _WORDS.items() if its == script}
    if len(candidates) == 1:
        return next(iter(candidates))
    found = Counter(_WORD.findall(text.lower()))
    scores = {language: sum(found[word] for word in words.split()) for language, words in candidates.items()}
    best = max(scores, key=lambda language: scores[language], default=None)
    return best if best and scores[best] else None
