"""Classification: training against transformers' Trainer padding to the longest text, prediction against its pipeline.

`FLEDGE_MESSAGES` names labelled texts (default: messages of the village, whose lengths differ little).
"""

import itertools
import os
import tempfile
from pathlib import Path

import torch

from bench import measure
from finetune import collate
from finetune.collate import Row
from finetune.config import ClassifyConfig
from finetune.split import Split
from fledge import rundir, trainer_bridge
from fledge.config import with_values
from fledge.data import labelled
from fledge.models import architecture, classifier, folder
from fledge.models.classifier import Classifier
from fledge.tokens import TextTokenizer
from tokenizer.learn import learn

EXAMPLES = 16
STEPS = 20  # all sorted by length together, as in longer runs every 50 are
PREDICTED = 200


def run() -> list[measure.Row]:
    """Texts a second in training and in prediction, of a model of 7 million parameters."""
    data = labelled.read([os.environ.get("FLEDGE_MESSAGES", "village:hamlet/messages")])
    texts = [example.text for example in data.examples]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        base = _base(path / "base", texts)
        torch.manual_seed(0)
        made = classifier.from_base(base, data.labels)
        rows, _, _ = collate.encode(made, data.examples, Split(list(range(STEPS * EXAMPLES)), [], [], 0))
        training = _training(base, data.labels, rows, path)
        return [training, _prediction(made, texts[:PREDICTED], path / "made")]


def _base(path: Path, texts: list[str]) -> Path:
    tokenizer = TextTokenizer(learn("bpe", iter(texts), 1024))
    shape = architecture.find_config("qwen3").sized(
        vocab_size=8192, context=256, layers=6, width=256, heads=4, bos_id=0, eos_id=0, pad_id=3
    )
    path.mkdir()
    folder.save_model(architecture.build(shape, 0), path)
    tokenizer.save(path)
    return path


def _training(base: Path, labels: list[str], rows: list[Row], path: Path) -> measure.Row:
    """Both read each of the same texts once, in as many steps; ours also logs and writes its checkpoint."""
    import transformers

    made, runs = classifier.from_base(base, labels), itertools.count()
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    longest = max(len(row.ids) for row in rows)
    padded = [
        {
            "input_ids": row.ids + [made.pad_id] * (longest - len(row.ids)),
            "attention_mask": [1] * len(row.ids) + [0] * (longest - len(row.ids)),
            "labels": row.label,
        }
        for row in rows
    ]
    settings = ClassifyConfig.model_validate(
        {"model": str(base), "data": ["bench"], "batch": {"examples": EXAMPLES}, "run": {"dtype": "float32"}}
    )
    settings = with_values(settings, {"run.max_steps": STEPS, "run.threads": torch.get_num_threads()})
    settings = trainer_bridge.resolved(settings, len(rows))

    def ours() -> None:
        job = trainer_bridge.Job(
            model=made.model,
            examples=rows,
            lengths=[len(row.ids) for row in rows],
            collate=lambda batch: collate.collate(batch, made.pad_id),
            loss=collate.summed_loss([1.0] * len(labels)),
            num_targets=lambda batch: len(batch["labels"]),
        )
        with rundir.create(settings, path / f"run-{next(runs)}") as run_folder:
            trainer_bridge.train(job, settings, run_folder)

    def theirs() -> None:
        arguments = transformers.TrainingArguments(
            output_dir=str(path / "peer"), per_device_train_batch_size=EXAMPLES, max_steps=STEPS, use_cpu=True,
            save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        transformers.Trainer(model=peer, args=arguments, train_dataset=padded).train()

    title = "classification: training, 7 M, against Trainer padding to the longest"
    return measure.rates(title, ours, theirs, STEPS * EXAMPLES, "texts/s", ">= 2", repeats=1)


def _prediction(made: Classifier, texts: list[str], path: Path) -> measure.Row:
    """`pipeline()` is given one text after the other, ours the same texts as a stream."""
    import transformers

    made.save(path)
    loaded = classifier.load(path)
    pipe = transformers.pipeline("text-classification", model=str(path), device="cpu")

    def ours() -> None:
        for _ in loaded.probabilities((text, None) for text in texts):
            pass

    def theirs() -> None:
        for text in texts:
            pipe(text, truncation=True, max_length=256)

    title = "classification: prediction, 7 M, against pipeline() one by one"
    return measure.rates(title, ours, theirs, len(texts), "texts/s", ">= 3", repeats=3)
