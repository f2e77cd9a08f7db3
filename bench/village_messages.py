"""Can a sequence model come between word counts and the best possible classifier on the village's messages?

A small GPT reads messages with their label written behind; a held-out message is given the label that the model finds
likelier. Beside it TF-IDF with logistic regression on words, trained on the same messages, and Bayes' accuracy.
"""

import tempfile
from pathlib import Path
from typing import Any

from bench.measure import Row
from fledge import commands, config
from fledge.models.loaded import load
from fledge.village.messages import LABELS, bayes_accuracy, rows
from fledge.village.world import make_world
from pretrain.config import PrepareConfig
from pretrain.config import TrainConfig as PretrainConfig
from tokenizer.config import TrainConfig as TokenizerConfig

NUM_TRAIN, NUM_TEST = 20_000, 1_000


def run() -> list[Row]:
    """Accuracies of word counts, the sequence model and Bayes."""
    world = make_world()
    train, test = list(rows(world, "train", NUM_TRAIN)), list(rows(world, "test", NUM_TEST))
    counts, model = _word_counts(train, test), _sequence_model(train, test)
    best = bayes_accuracy(world)
    return [
        Row("spam accuracy: TF-IDF words, logistic regression", counts, unit="share"),
        Row("spam accuracy: GPT, 3 layers, 96 wide", model, counts, model / counts, "above word counts", "share"),
        Row("spam accuracy: Bayes (the ceiling)", best, unit="share"),
    ]


def _word_counts(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    classifier.fit([row["text"] for row in train], [row["label"] for row in train])
    return float(classifier.score([row["text"] for row in test], [row["label"] for row in test]))


def _sequence_model(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> float:
    import torch

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        text = folder / "messages.jsonl"
        text.write_text("".join(f'{{"text": "{_written(row)}"}}\n' for row in train), encoding="utf-8")
        commands.execute(TokenizerConfig(input=[str(text)], vocab_size=512), folder / "tokenizer")
        commands.execute(PrepareConfig(input=[str(text)], tokenizer=str(folder / "tokenizer")), folder / "shards")
        settings = config.with_values(
            PretrainConfig(data=str(folder / "shards")),
            {"model.layers": 3, "model.width": 96, "model.heads": 3, "model.context": 128, "batch.sequences": 16}
            | {"optim.learning_rate": 0.01, "run.max_steps": 1500, "run.checkpoint_every": 1500, "samples.every": 0},
        )
        commands.execute(settings, folder / "model-run")
        model = load(folder / "model-run")
    right = 0
    end = model.tokenizer.end_of_text_id
    for row in test:
        scores = []
        for label in LABELS:
            ids = [end, *model.tokenizer.encode(_written(row | {"label": label})), end]
            logprobs = model.logits([ids[:-1]])[0].log_softmax(-1)
            scores.append(float(logprobs.gather(1, torch.tensor(ids[1:])[:, None]).sum()))
        right += LABELS[scores.index(max(scores))] == row["label"]
    return right / len(test)


def _written(row: dict[str, Any]) -> str:
    return f"{row['text']} = {row['label']}".replace('"', "'")
