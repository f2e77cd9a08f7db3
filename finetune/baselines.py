"""What a model has to beat: simple classifiers, trained on the same rows in seconds."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fledge import console
from fledge.data.labelled import Example

FITTED_ROWS = 20_000  # to train on, and scored at a time: a row of a few words takes 12 kB as characters' n-grams


def scores(
    train: Sequence[Example], test: Sequence[Example], labels: Sequence[str], balanced: bool
) -> dict[str, np.ndarray]:
    """Scores (N rows, C labels) of each baseline on the test rows; the highest is the predicted label.

    Args:
        balanced: whether the classes count alike in training, as the model's do.
    """
    console.note("\n".join(["fitting the baselines", *told(len(train))]))
    if len(train) > FITTED_ROWS:
        fair = np.random.default_rng(0).permutation(len(train))[:FITTED_ROWS].tolist()
        first = {train[n].label: n for n in reversed(range(len(train)))}  # each label must be seen
        train = [train[n] for n in sorted({*fair, *first.values()})]
    texts, truth = [e.all_text for e in train], [labels.index(e.label) for e in train]
    found = {}
    for name, classifier in _classifiers("balanced" if balanced else None).items():
        with needing_words(name):
            classifier.fit(texts, truth)
            found[name] = _scores(classifier, [e.all_text for e in test], len(labels))
    return found


def told(num_rows: int) -> list[str]:
    """What is to be said where not all rows to train on are taken."""
    if num_rows <= FITTED_ROWS:
        return []
    return [f"the baselines know {FITTED_ROWS} of the {num_rows} rows to train on: more would fill the memory"]


@contextlib.contextmanager
def needing_words(name: str) -> Iterator[None]:
    """Leave a baseline out aloud where the texts have no words for it."""
    try:
        yield
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        console.note(f"baseline {name} is left out: the texts have no words")


def _scores(classifier: Any, texts: list[str], num_labels: int) -> np.ndarray:
    """The classifier's scores with a column a label, also where it saw only some."""
    has_probabilities = hasattr(classifier, "predict_proba")
    ask = classifier.predict_proba if has_probabilities else classifier.decision_function
    raw = np.concatenate([ask(texts[at : at + FITTED_ROWS]) for at in range(0, len(texts), FITTED_ROWS)])
    if raw.ndim == 1:
        raw = np.stack((-raw, raw), 1)
    scores = np.full((len(texts), num_labels), raw.min() - 1 if not has_probabilities else 0.0)
    scores[:, classifier.classes_] = raw
    return scores


def _classifiers(weight: str | None) -> dict[str, Any]:
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 5), sublinear_tf=True)
    return {
        "majority": DummyClassifier(strategy="prior"),
        "tfidf_words_logistic_regression": make_pipeline(
            TfidfVectorizer(), LogisticRegression(max_iter=1000, class_weight=weight)
        ),
        "tfidf_characters_svm": make_pipeline(characters, LinearSVC(class_weight=weight)),
    }
