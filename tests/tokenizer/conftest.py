"""A small text with regularities, and a tokenizer learned from it."""

import random
import re

import pytest

from fledge.tokens import TextTokenizer, default_chat_template
from tokenizer.learn import learn

WORDS = re.findall(
    r"\S+",
    "the a of and to in was he that it his she with had for her as at on not but be they were said which him "
    "would there all been one have from this no what so when who their or them if an up out don't I'm we'll",
)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Sixty documents of made-up prose with numbers, paragraphs and some rare characters."""
    choose = random.Random(7)
    documents = []
    for number in range(60):
        sentences = [" ".join(choose.choices(WORDS, k=choose.randint(3, 12))) for _ in range(20)]
        paragraphs = [f"{s.capitalize()}{choose.choice('.!?,;')}" for s in sentences]
        documents.append(
            f"Chapter {number * 37}\n\n" + choose.choice((" ", "\n", "\n\n")).join(paragraphs) + " caf\u00e9 \u4f60\n"
        )
    return documents


@pytest.fixture(scope="session")
def small_tokenizer(corpus: list[str]) -> TextTokenizer:
    """Byte-level BPE with 400 tokens and our chat template."""
    return TextTokenizer(learn("bpe", iter(corpus), 400), chat_template=default_chat_template())
