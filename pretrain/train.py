"""`fledge pretrain train`: token shards to a base model."""

import copy
import math
from typing import Any

import torch

from fledge import checkpoints, config, console, device, processes
from fledge.deepspeed_engine import require_deepspeed
from fledge.errors import ConfigError, RunFailed
from fledge.models import architecture, generation
from fledge.models.architecture import LanguageModel
from fledge.rundir import RunFolder, require_disk
from pretrain import export, parent, probe, sizing, trace
from pretrain.config import TrainConfig
from pretrain.guards import check_first_loss, memory_errors
from pretrain.meter import Meter
from pretrain.parent import Parent
from pretrain.session import Session, model_of_checkpoint
from pretrain.training_data import TrainingData
from pretrain.validation import Validation


def run(settings: TrainConfig, folder: RunFolder) -> dict[str, Any]:
    """Train a model in a run folder; see TrainConfig."""
    settings = _with_engine(_plain_values(settings))
    processes.set_patience(settings.engine.patience)
    torch.set_num_threads(settings.run.threads)
    data = export.open_shards(folder, settings.data)
    origin = parent.load(settings, data) if settings.init and not folder.resumes_from else None
    if origin:
        settings = config.with_values(settings, parent.model_settings(settings, origin.model))
        windows = f"{settings.model.context} tokens, of {origin.model.config.context} that it can read"
        console.note(
            f"the config's group 'model' is left out: the shape is that of {origin.path}; windows are of {windows}"
        )
    settings = _with_steps_in_budget(settings, data, origin)
    folder.freeze(settings)
    folder.track_with(settings.run.trackers)

    if folder.resumes_from:
        session = Session(settings, model_of_checkpoint(folder.resumes_from), data.train)
        session.restore(folder.resumes_from)
    else:
        with memory_errors():
            session = Session(settings, _first_model(settings, data, origin), data.train)
        _check_disk(settings, session.num_parameters, folder)
        export.record_lineage(folder, settings, data, origin)
    validation = data.validation_windows(settings, session.engine.evaluation)
    _announce(settings, session.num_parameters, data)
    before = export.measure_before(folder, session, validation, origin)
    _loop(session, validation, data, folder)
    return export.finish(folder, session, validation, data, before)


def _plain_values(settings: TrainConfig) -> TrainConfig:
    """The settings with everything that `auto`, 0 threads and --size stand for, as plain values."""
    values = device.plain_values(settings.run)
    if settings.size is not None:
        values |= sizing.from_depth(settings)
    return config.with_values(settings, values)


def _with_engine(settings: TrainConfig) -> TrainConfig:
    """The settings with the engine that `auto` stands for, as plain values.

    Raises:
        ConfigError: the processes can't share the batch, or the plain engine would have to run in several.
        RunError: DeepSpeed is not installed.
    """
    wanted, batch, count = settings.engine, settings.batch, processes.size()
    kind = wanted.kind
    if kind == "auto":
        kind = "deepspeed" if count > 1 or wanted.zero is not None else "torch"
    if kind == "torch":
        if count > 1:
            raise ConfigError(f"--engine.kind torch runs in one process, here are {count}; start it without a launcher")
        return config.with_values(settings, {"engine.kind": kind})
    require_deepspeed()
    if batch.sequences % (count * (batch.microbatch or 1)):
        raise ConfigError(
            f"--batch.sequences {batch.sequences} can't be shared by {count} processes"
            + (f" in microbatches of {batch.microbatch}" if batch.microbatch else "")
            + "; use a multiple"
        )
    zero = wanted.zero or 0
    values: dict[str, Any] = {"engine.kind": kind, "engine.zero": zero}
    if zero and settings.optim.optimizer == "muon" and settings.optim.clip_norm:
        console.note("gradients are not clipped: at ZeRO 1-3 DeepSpeed's own Muon would clip its updates instead")
        values["optim.clip_norm"] = 0
    return config.with_values(settings, values)


def _first_model(settings: TrainConfig, data: TrainingData, origin: Parent | None) -> LanguageModel:
    """The model before step 0: the parent, or random weights."""
    if origin:
        return origin.model
    shape, vocabulary = settings.model, data.tokenizer
    end = vocabulary.end_of_text_id
    ids = {"bos_id": end, "eos_id": end, "pad_id": vocabulary.special_ids.get("<|pad|>", end)}
    built = sizing.architecture_of(shape, vocabulary.vocab_size, **ids)
    return architecture.build(built, settings.run.seed, sizing.VOCABULARY_MULTIPLE)


def _with_steps_in_budget(settings: TrainConfig, data: TrainingData, origin: Parent | None) -> TrainConfig:
    """The settings with `run.max_steps` fixed so that the loop takes the time budget.

    Measured on a throw-away session, so weights and random numbers of the run are untouched.
    """
    if settings.time_budget is None:
        return settings
    budget_s = config.parse_duration(settings.time_budget)
    console.note(f"measuring how many steps fit into {settings.time_budget} ...")
    with memory_errors():
        session = Session(settings, copy.deepcopy(_first_model(settings, data, origin)), data.train)
    validation = data.validation_windows(settings, session.engine.evaluation)
    costs = probe.measure(
        budget_s, lambda i: session.train_step(), lambda windows: validation.measure(session.model, windows)
    )
    every, windows = settings.validation.every, min(settings.validation.sequences, validation.num_windows)
    steps = probe.steps_in(budget_s, costs, every, windows, validation.num_windows)
    console.note(f"{costs.step_s * 1000:.1f} ms a step: {steps} steps")
    # Frozen as plain values: resuming and re-running measure nothing.
    return config.with_values(settings, {"time_budget": None, "run.max_steps": steps})


def _check_disk(settings: TrainConfig, num_parameters: int, folder: RunFolder) -> None:
    # Weights and two moments in float32 a checkpoint, and ZeRO's masters; one more while the oldest is not deleted
    # yet, and the best.
    each = (16 if settings.engine.zero else 12) * num_parameters
    needed = each * (settings.run.keep_checkpoints + 2) + 4 * num_parameters
    require_disk(folder.path, needed, "the checkpoints and the model")


def _announce(settings: TrainConfig, num_parameters: int, data: TrainingData) -> None:
    shape, tokens = settings.model, settings.batch.sequences * settings.model.context
    count, steps = console.format_count, settings.run.max_steps
    console.note(
        f"{shape.architecture}, {count(num_parameters)} parameters: {shape.layers} layers, "
        f"{shape.width} wide, {shape.heads} heads, context {shape.context}, {data.tokenizer.vocab_size} tokens"
    )
    console.note(
        f"{count(steps)} steps of {count(tokens)} tokens = {count(float(steps * tokens))} tokens, "
        f"{steps * tokens / data.train.num_tokens:.2f} times the training text ({settings.run.device}, "
        f"{settings.run.dtype}, {settings.run.threads} threads, {settings.optim.optimizer})"
    )
    if settings.engine.kind == "deepspeed":
        how = "each with all of the model" if not settings.engine.zero else f"ZeRO {settings.engine.zero}"
        console.note(f"DeepSpeed over {processes.size()} processes, {how}")


def _loop(session: Session, validation: Validation, data: TrainingData, folder: RunFolder) -> None:
    """Train until the last step; metrics, validation, samples and checkpoints on the way."""
    settings, steps = session.config, session.config.run.max_steps
    meter = Meter(session, data.tokens_per_byte)
    with (
        folder.stopping_politely(),
        trace.traced(settings, folder) as count_step,
        console.progress("pretraining", steps, "steps", session.counters.step) as bar,
    ):
        if settings.samples.every and session.counters.step == 0:
            _share_samples(session, data, folder)
        while session.counters.step < steps:
            meter.tick()
            result = session.train_step()
            count_step()
            step = session.counters.step
            if step == 1 and settings.init is None:
                check_first_loss(result.loss, session.model.config)
            if session.guard.judge(result, step) == "roll back":
                _roll_back(session, folder)
                bar.advance(session.counters.step - step + 1)
                continue
            is_last = step == steps
            metrics = meter.after_step(result, meter.tick())
            if step % settings.validation.every == 0 or is_last:
                metrics |= _check(session, validation)
            if metrics:
                folder.log({"step": step} | metrics)
            if settings.samples.every and (step % settings.samples.every == 0 or is_last):
                _share_samples(session, data, folder)
            bar.advance(1, meter.text)
            meter.tick()
            stops = folder.stop_requested
            if step % settings.run.checkpoint_every == 0 or is_last or stops:
                _save(session, folder)
            if stops and not is_last:
                raise folder.interrupted(step)


def _check(session: Session, validation: Validation) -> dict[str, Any]:
    """Held-out loss on a part of the validation text; remembers the best step that has a checkpoint."""
    settings, counters = session.config, session.counters
    held_out = validation.measure(session.model, settings.validation.sequences)
    if not math.isfinite(held_out.loss):
        raise RunFailed(
            f"step {counters.step}: the validation loss is {held_out.loss}; lower the learning rates "
            "(--optim.learning-rate, --optim.muon-learning-rate) and start a new run"
        )
    keeps = counters.step % settings.run.checkpoint_every == 0 or counters.step == settings.run.max_steps
    if keeps and (counters.best_loss is None or held_out.loss < counters.best_loss):
        counters.best_step, counters.best_loss = counters.step, held_out.loss
    return {"validation_loss": held_out.loss, "validation_bits_per_byte": held_out.bits_per_byte}


def _save(session: Session, folder: RunFolder) -> None:
    with folder.checkpoint(session.counters.step) as partial:
        session.save(partial)
    session.rolled_back_to = None
    checkpoints.prune(folder.checkpoints, session.config.run.keep_checkpoints, session.counters.best_step)


def _roll_back(session: Session, folder: RunFolder) -> None:
    """Take the run back to its last good checkpoint.

    Raises:
        RunFailed: there is none yet.
    """
    step, tried = session.counters.step, session.rolled_back_to
    if tried is not None and any(checkpoints.step_of(c) < tried for c in checkpoints.listed(folder.checkpoints)):
        checkpoints.drop_after(folder.checkpoints, tried - 1)  # it did not help: its weights are no good
    good = checkpoints.newest_whole(folder.checkpoints) if folder.checkpoints.is_dir() else None
    good = processes.same(good)
    if good is None:
        raise RunFailed(
            f"step {step}: the loss went wrong before the first checkpoint; lower the learning rates "
            "(--optim.learning-rate, --optim.muon-learning-rate) or lengthen --schedule.warmup"
        )
    session.roll_back(good)
    folder.rewind(good)


def _share_samples(session: Session, data: TrainingData, folder: RunFolder) -> None:
    with session.engine.whole_weights() as model:
        if processes.is_first():
            _write_samples(model, session, data, folder)


def _write_samples(model: LanguageModel, session: Session, data: TrainingData, folder: RunFolder) -> None:
    """Let the model continue the fixed prompts, for samples.jsonl."""
    wanted, step = session.config.samples, session.counters.step
    tokenizer = data.tokenizer
    limits = generation.Sampling(max_new_tokens=wanted.max_new_tokens, temperature=wanted.temperature)
    sampling = generation.fitted(model, tokenizer, limits)
    ids = generation.prompt_ids(model, tokenizer, wanted.prompts, sampling)
    found = generation.generate(model, ids, sampling, tokenizer.token_bytes())
    for prompt, written in zip(wanted.prompts, found, strict=True):
        folder.log_sample({"step": step, "prompt": prompt} | generation.sample_of(tokenizer, written))
