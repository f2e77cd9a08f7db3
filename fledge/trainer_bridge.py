"""Training by transformers' and TRL's trainers, under fledge's run contract; with `trl_trainers` the only importer.

Usage, from a command's `run(settings, folder)`:

    job = Job(
        model=model,                  # a transformers model, perhaps wrapped by PEFT; its trainable weights are saved
        examples=examples,            # any list; what `collate` makes a batch of tensors from
        lengths=[...],                # of the examples, for length buckets; None: plainly shuffled
        collate=collate,              # list of examples -> batch; tensors, and "num_tokens": how many are no padding
        loss=loss,                    # (model, batch) -> loss SUMMED over the batch's targets; None: TRL's own mean
        num_targets=num_targets,      # batch -> what the sum is divided by, over all microbatches of a step together
        check=check,                  # model -> {"validation_loss": ...}, names of METRICS; model is in eval mode
        best="validation_loss",       # the metric that picks the best step; `lower_is_better=False` for accuracy
        sample=sample,                # (model, step) -> rows for samples.jsonl; may be left out
    )
    outcome = train(job, settings, folder)   # afterwards job.model has the weights of the best step

`settings` has the groups `run`, `batch`, `optim` and `validation` of finetune.config, with plain values (`resolved`).
Call `train` again after a kill with the same job: it continues from `folder.resumes_from`, bit for bit.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fledge import hub

os.environ.setdefault("HF_HUB_OFFLINE", hub.OFFLINE)  # the trainers ping the hub when they start
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch

if not torch.cuda.is_available():  # accelerate looks at deepspeed, which else warns that it guesses
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from fledge import checkpoints, config, console, device
from fledge.data.batch_order import BatchOrder
from fledge.errors import RunFailed
from fledge.models.trained import load_weights, save_weights
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer

Batch = dict[str, Any]
Write = Callable[[nn.Module, list[list[int]], int], list[list[int]]]  # model, prompts, step -> answers
Judge = Callable[[list[Any], list[list[int]]], list[float]]  # examples, answers -> rewards

TrainerName = Literal["transformers", "trl-sft", "trl-reward", "trl-dpo", "trl-grpo"]
PROGRESS = "progress.json"


@dataclass
class Job:
    """What a command has to give for training; see the module's usage."""

    model: nn.Module
    examples: Sequence[Any]
    collate: Callable[[list[Any]], Any]
    loss: Callable[[nn.Module, Batch], Tensor] | None
    num_targets: Callable[[Batch], int]
    lengths: Sequence[int] | None = None
    check: Callable[[nn.Module], dict[str, float]] | None = None
    best: str = "validation_loss"
    lower_is_better: bool = True
    sample: Callable[[nn.Module, int], list[dict[str, Any]]] | None = None
    indivisible: int = 1  # steps between which a checkpoint could not be continued exactly; there is none
    tokenizer: TextTokenizer | None = None  # TRL's trainers want one
    arguments: dict[str, Any] = field(default_factory=dict)  # for TRL's config, such as those of its loss
    held_out: Sequence[Any] = ()  # DPO: examples that TRL's own loss is measured on at each check
    write: Write | None = None  # GRPO, where `collate` gives a list of {"prompt": ids, "example": ...}
    judge: Judge | None = None  # GRPO


@dataclass
class Progress:
    """Where a run stands; part of each checkpoint."""

    step: int = 0
    tokens: int = 0  # read, padding not counted
    elapsed_s: float = 0.0  # over all processes that worked on the run
    best_step: int | None = None
    best_value: float | None = None
    checks_since_best: int = 0
    stopped_early_of: int | None = None  # the number of steps that the run would have had


def resolved(settings: Any, num_examples: int) -> Any:
    """The settings with everything that `auto`, 0 threads and epochs stand for, as plain values; sets the threads."""
    batch, steps = settings.batch, settings.run.max_steps
    if batch.epochs is not None:
        steps = min(steps, max(1, round(batch.epochs * math.ceil(num_examples / batch.examples))))
    values = device.plain_values(settings.run)
    torch.set_num_threads(values["run.threads"])
    return config.with_values(settings, values | {"run.max_steps": steps, "batch.epochs": None})


def train(job: Job, settings: Any, folder: RunFolder, by: TrainerName = "transformers") -> Progress:
    """Train until the last step, or until checks stop getting better.

    Afterwards the model has the weights of the best step (the last one, where nothing is checked).
    Raises:
        Interrupted: the run was asked to stop and has written its checkpoint.
        RunFailed: the loss or the gradient is not finite; names the step.
    """
    trainer = _make(job, settings, folder, by)
    resumed = folder.resumes_from
    if resumed:
        trainer.progress = Progress(**json.loads((resumed / PROGRESS).read_text(encoding="utf-8")))
    progress = trainer.progress
    if progress.stopped_early_of != settings.run.max_steps and progress.step < settings.run.max_steps:
        if progress.stopped_early_of:  # asked for more since
            progress.stopped_early_of, progress.checks_since_best = None, 0
        with folder.stopping_politely(), trainer.shown():
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        # In bfloat16 the trainer puts its cast around the model's forward and leaves it there.
        trainer.accelerator.unwrap_model(job.model, keep_fp32_wrapper=False)
        is_done = progress.step == settings.run.max_steps or progress.stopped_early_of
        if folder.stop_requested and not is_done:
            raise folder.interrupted(progress.step)
    elif resumed:
        load_weights(job.model, resumed)
    if progress.best_step not in (None, progress.step):
        best = folder.checkpoints / checkpoints.name_of(progress.best_step)
        problem = checkpoints.damage(best)
        if problem:
            console.warn(f"{best}: {problem}; the model has the weights of the last step instead of the best")
        else:
            load_weights(job.model, best)
    job.model.eval()
    return progress


class Contract(Trainer):
    """A trainer whose data order, loss, log, checks and checkpoints are the run's; mixed into TRL's, too."""

    job: Job
    folder: RunFolder
    settings: Any
    progress: Progress

    def __init__(self, *, job: Job, settings: Any, folder: RunFolder, **arguments: Any) -> None:
        self.job, self.settings, self.folder, self.progress = job, settings, folder, Progress()
        self._line: dict[str, Any] = {}
        self._tokens_before, self._busy_s, self._clock = 0, 0.0, 0.0
        self._bar: console.Progress | None = None
        # One process trains on one device; of several GPUs the trainer would make a DataParallel, which TRL refuses.
        arguments["args"]._n_gpu = min(1, arguments["args"].n_gpu)
        super().__init__(model=job.model, **arguments)
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True  # how transformers 5.19 has it, and 5.17
        self.add_callback(_Flow(self))
        self.remove_callback(PrinterCallback)

    # --- data and loss ---

    def get_train_dataloader(self) -> Any:
        """All batches of the run as one pass, of which resuming skips those that were read."""
        batch, run = self.settings.batch, self.settings.run
        size = batch.microbatch or batch.examples
        order = BatchOrder(len(self.job.examples), batch.examples, size, run.max_steps, run.seed, self.job.lengths)
        loader: Any = DataLoader(
            self.job.examples,  # type: ignore[arg-type]
            batch_sampler=order,
            collate_fn=self.job.collate,
            generator=torch.Generator(),  # the loader draws a seed: not from the run's own random numbers
        )
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        """The targets of a step, over all its microbatches."""
        self.progress.tokens += sum(batch.pop("num_tokens", 0) for batch in batch_samples)
        return torch.tensor(max(1, sum(self.job.num_targets(b) for b in batch_samples)), device=device)

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This microbatch's share of the step's mean loss."""
        own, num_targets = self.job.loss, self.job.num_targets(inputs)
        summed = own(model, inputs) if own else super().compute_loss(model, inputs) * num_targets
        loss: Tensor = summed / num_items_in_batch
        if not torch.isfinite(loss):
            raise self._not_finite(f"the loss is {loss.item()}")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise self._not_finite(f"the gradient's norm is {float(norm)}")
        return norm

    def _not_finite(self, what: str) -> RunFailed:
        return RunFailed(f"step {self.progress.step + 1}: {what}; lower --optim.learning-rate and start a new run")

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted."""
        return 0

    # --- after each step ---

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show a progress bar meanwhile."""
        steps = self.settings.run.max_steps
        with console.progress("fine-tuning", steps, "steps", self.progress.step) as self._bar:
            self._clock, self._tokens_before = time.perf_counter(), self.progress.tokens
            yield

    def after_step(self, step: int, control: Any) -> None:
        """Check, sample, and say what the trainer shall do: log, save, stop."""
        run, validation, progress = self.settings.run, self.settings.validation, self.progress
        progress.step = step
        self._busy_s += self._tick()
        is_last, unit = step == run.max_steps, self.job.indivisible

        def is_due(every: int) -> bool:
            """Whether the run may be paused here, and a multiple was reached since it last could."""
            return is_last or (step % unit == 0 and step % every < unit)

        is_checked = self.job.check is not None and is_due(validation.every)
        is_best = is_checked and self._check(step)
        if is_checked and self.job.sample is not None:
            self._sample(step)
        if validation.patience and progress.checks_since_best >= validation.patience and not is_last:
            progress.stopped_early_of = run.max_steps
            console.note(f"step {step}: no better for {validation.patience} checks; stopping early")
        stop = progress.stopped_early_of or (is_due(1) and self.folder.stop_requested)
        control.should_training_stop |= bool(stop)
        control.should_save = is_due(run.checkpoint_every) or is_best or control.should_training_stop
        # A resumed run begins a new line where its checkpoint was, so an uninterrupted one must, too.
        control.should_log = step % run.log_every == 0 or is_checked or control.should_save
        if self._bar:
            self._bar.advance(1)
        self._tick()

    def _tick(self) -> float:
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        self.progress.elapsed_s += passed
        return passed

    def _check(self, step: int) -> bool:
        """Measure; whether this step is the best so far."""
        assert self.job.check is not None
        with _undisturbed(self.job.model):
            found = self.measured() | self.job.check(self.job.model)
        value, progress = found[self.job.best], self.progress
        if not math.isfinite(value):
            raise self._not_finite(f"{self.job.best} is {value}")
        self._line |= found
        is_best = progress.best_value is None or (
            value < progress.best_value if self.job.lower_is_better else value > progress.best_value
        )
        if is_best:
            progress.best_step, progress.best_value, progress.checks_since_best = step, value, 0
        else:
            progress.checks_since_best += 1
        return is_best

    def measured(self) -> dict[str, float]:
        """What a trainer of TRL measures of held-out examples by itself."""
        return {}

    def figures(self) -> dict[str, float]:
        """What a trainer of TRL has measured since the last line of metrics.jsonl."""
        return {}

    def _sample(self, step: int) -> None:
        assert self.job.sample is not None
        with _undisturbed(self.job.model):
            for row in self.job.sample(self.job.model, step):
                self.folder.log_sample({"step": step} | row)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of metrics.jsonl from what the trainer has measured."""
        if "loss" not in logs:
            return  # the trainer's own summary at the end
        speed = (self.progress.tokens - self._tokens_before) / max(self._busy_s, 1e-9)
        line = {
            "step": self.progress.step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "tokens": self.progress.tokens,
            "tokens_per_s": round(speed, 1),
            "elapsed_s": round(self.progress.elapsed_s, 3),
        }
        if "grad_norm" in logs:
            line["gradient_norm"] = logs["grad_norm"]
        self.folder.log(line | self.figures() | self._line)
        if self._bar:
            checked = f"  {self.job.best} {self.progress.best_value:.3f}" if self.progress.best_step else ""
            text = f"loss {logs['loss']:.3f}{checked}  {console.format_count(speed)} tokens/s"
            self._bar.advance(0, text)
        self._line, self._busy_s, self._tokens_before = {}, 0.0, self.progress.tokens

    # --- checkpoints ---

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        progress = self.progress
        with self.folder.checkpoint(progress.step) as partial:
            save_weights(self.job.model, partial)
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))
            self.state.log_history = []  # metrics.jsonl has it
            self.state.save_to_json(str(partial / "trainer_state.json"))
            (partial / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        checkpoints.prune(self.folder.checkpoints, self.settings.run.keep_checkpoints, progress.best_step)
        self._tick()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.job.model, Path(resume_from_checkpoint))


class _Flow(TrainerCallback):
    """Tells the contract of each step, after the trainer's own callbacks."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
        """See `Contract.after_step`."""
        self._contract.after_step(state.global_step, control)
        return control


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; random numbers and training mode are afterwards as before."""
    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        yield
    model.train(was_training)


def _make(job: Job, settings: Any, folder: RunFolder, by: str) -> Any:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.pop("LOCAL_RANK", None)  # DeepSpeed's, or a launcher's of one process: it would wrap the model
    parts: dict[str, Any] = {"job": job, "settings": settings, "folder": folder}
    if by == "transformers":
        return Contract(args=TrainingArguments(**_arguments(settings, folder)), **parts)
    from fledge import trl_trainers

    return trl_trainers.make(job, _arguments(settings, folder), parts, by)


def pack(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], row_tokens: int) -> Any:
    """Rows of several examples each (best fit, decreasing), as a data set: input_ids, labels, seq_lengths."""
    import datasets
    from trl import pack_dataset

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"input_ids": list(ids), "labels": list(labels)})
    return pack_dataset(rows, row_tokens, "bfd")


def _arguments(settings: Any, folder: RunFolder) -> dict[str, Any]:
    """What the trainers' arguments have in common; their own defaults suit other machines."""
    run, batch, optim = settings.run, settings.batch, settings.optim
    microbatch = batch.microbatch or batch.examples
    return {
        "output_dir": str(folder.path),
        "max_steps": run.max_steps,
        "per_device_train_batch_size": microbatch,
        "gradient_accumulation_steps": batch.examples // microbatch,
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": optim.schedule,
        "warmup_steps": round(optim.warmup * run.max_steps),
        "weight_decay": optim.weight_decay,
        "adam_beta2": optim.beta2,
        "max_grad_norm": optim.clip_norm,
        "optim": "adamw_torch_fused",
        "seed": run.seed,
        "use_cpu": run.device == "cpu",
        "bf16": run.dtype == "bfloat16",
        "save_strategy": "no",  # `after_step` says when
        "eval_strategy": "no",
        "logging_steps": 10**9,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
