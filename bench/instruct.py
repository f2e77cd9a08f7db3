"""Instruction tuning against TRL as it comes, and with gradient checkpointing off: real tokens a CPU-second.

A random model of 12 M parameters, float32, about the same real tokens in an optimizer step. The conversations are the
village's, or those of the file that FLEDGE_INSTRUCTIONS names (instruction_1100 in LOG.md).
"""

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.measure import Row, interleaved
from finetune import supervised
from finetune.config import InstructConfig
from fledge import config, rundir, trainer_bridge
from fledge.data import conversations
from fledge.models import architecture
from fledge.models import folder as model_folder
from fledge.tokens import TextTokenizer, default_chat_template
from fledge.trainer_bridge import Job
from tokenizer.learn import learn

STEPS, ROWS, ROW_TOKENS, LENGTH = 4, 2, 512, 1024
SHAPE = {"layers": 7, "width": 320, "heads": 5, "context": 1024}


def run() -> list[Row]:
    """Both ratios, interleaved."""
    data = os.environ.get("FLEDGE_INSTRUCTIONS", "village:instructions")
    talks = conversations.read([data], 0.1).train
    texts = (message["content"] for talk in talks for message in talk.messages)
    tokenizer = TextTokenizer(learn("bpe", texts, 2048), None, default_chat_template())
    with tempfile.TemporaryDirectory() as scratch:
        made = architecture.find_config("qwen3").sized(vocab_size=8192, pad_id=3, bos_id=0, eos_id=0, **SHAPE)
        model_folder.save_model(architecture.build(made, seed=0), scratch)
        tokenizer.save(Path(scratch))
        return [_compare(Path(scratch), tokenizer, talks, name) for name in ("TRL's defaults", "checkpointing off")]


def _compare(path: Path, tokenizer: TextTokenizer, talks: list[Any], name: str) -> Row:
    examples = supervised.tokenise(tokenizer, talks, LENGTH).examples
    rows = supervised.pack(examples, ROW_TOKENS)
    settings = config.load(InstructConfig, None, {("model",): str(path), ("data",): ["x"]})
    settings = config.with_values(
        settings,
        {"batch.examples": ROWS, "run.max_steps": STEPS, "run.checkpoint_every": 10**6, "run.device": "cpu"}
        | {"run.dtype": "float32", "run.threads": torch.get_num_threads(), "validation.every": 10**6},
    )
    parent = model_folder.load_by_transformers(path)
    tokens = {"ours": 0, "theirs": 0}

    def ours() -> None:
        job = Job(
            model=copy.deepcopy(parent),
            examples=rows,
            collate=supervised.collate,
            loss=supervised.loss,
            num_targets=supervised.num_targets,
            tokenizer=tokenizer,
        )
        with tempfile.TemporaryDirectory() as scratch, rundir.create(settings, Path(scratch) / "r") as folder:
            tokens["ours"] = trainer_bridge.train(job, settings, folder, "trl-sft").tokens

    per_row = sum(len(row["input_ids"]) for row in rows) / len(rows)
    per_example = sum(len(example["input_ids"]) for example in examples) / len(examples)
    batch = max(1, round(ROWS * per_row / per_example))

    def theirs() -> None:
        tokens["theirs"] = _trl(copy.deepcopy(parent), path, talks, batch, name == "TRL's defaults")

    _, _, ours_cpu, peer_cpu = interleaved(ours, theirs, repeats=3)
    speeds = tokens["ours"] / ours_cpu, tokens["theirs"] / peer_cpu
    goal = "> 1.8" if name == "TRL's defaults" else "> 1.15"
    title = f"instruct, 12 M, against {name}"
    return Row(title, *speeds, speeds[0] / speeds[1], goal, "tokens/CPU-s", (ours_cpu, peer_cpu))


def _trl(model: Any, path: Path, talks: list[Any], batch: int, checkpointing: bool) -> int:
    """Train by TRL as it comes; the real tokens read."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model,
            SFTConfig(
                output_dir=scratch,
                max_steps=STEPS,
                per_device_train_batch_size=batch,
                assistant_only_loss=True,
                activation_checkpointing=checkpointing,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list([{"messages": talk.messages} for talk in talks[: batch * STEPS]]),
            processing_class=AutoTokenizer.from_pretrained(path),
        )
        trainer.train()
        return int(trainer._total_train_tokens)
