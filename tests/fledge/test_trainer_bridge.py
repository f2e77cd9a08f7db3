"""Foreign trainers under the run contract: exact resume, accumulation, best step, stops, errors."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from fledge import checkpoints, rundir, trainer_bridge
from fledge.config import CommandConfig, Config, RunConfig
from fledge.errors import Interrupted, RunFailed
from fledge.metrics_log import read_metrics
from fledge.trainer_bridge import Batch, Job, Progress

# --- ten-line settings, model and data ---


class Batches(Config):
    examples: int = 4
    microbatch: int | None = None
    epochs: float | None = None


class Optim(Config):
    learning_rate: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.0
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip_norm: float = 1.0


class Validation(Config):
    every: int = 3
    patience: int = 0


class Settings(CommandConfig):
    stage: ClassVar[str] = "tests"
    command: ClassVar[str] = "bridge"
    run: RunConfig = RunConfig(max_steps=12, checkpoint_every=4, log_every=2, threads=1, device="cpu", dtype="float32")
    batch: Batches = Batches()
    optim: Optim = Optim()
    validation: Validation = Validation()


class Net(nn.Module):
    """A line through points, with dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, generator=generator))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x_BF: Tensor) -> Tensor:
        return nn.functional.dropout(x_BF * self.frozen, 0.2, self.training) @ self.weight


POINTS = [([n / 10, 1.0, n % 3], n / 5) for n in range(18)]


def collate(points: list[Any]) -> Batch:
    return {
        "x": torch.tensor([p[0] for p in points]),
        "y": torch.tensor([p[1] for p in points]),
        "num_tokens": len(points),
    }


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return ((model(batch["x"]) - batch["y"]) ** 2).sum()


def make_job(**changes: Any) -> Job:
    def check(model: nn.Module) -> dict[str, float]:
        torch.rand(3)  # a check that draws must not disturb the run
        return {"validation_loss": float(loss(model, collate(POINTS[:6])) / 6)}

    parts: dict[str, Any] = {
        "model": Net(),
        "examples": POINTS,
        "collate": collate,
        "loss": loss,
        "num_targets": lambda batch: len(batch["y"]),
        "check": check,
    }
    return Job(**{**parts, **changes})


def settings_with(**values: Any) -> Settings:
    return trainer_bridge.config.with_values(Settings(), {k.replace("__", "."): v for k, v in values.items()})


def start(job: Job, settings: Settings, out: Path) -> Progress:
    with rundir.create(settings, out) as folder:
        return trainer_bridge.train(job, settings, folder)


def resume(job: Job, settings: Settings, out: Path) -> Progress:
    with rundir.reopen(out) as folder:
        return trainer_bridge.train(job, settings, folder)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- what must hold ---


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up by the loop."""


def killed_after(num_batches: int) -> Callable[[list[Any]], Batch]:
    counted = iter(range(num_batches))

    def collate_or_die(points: list[Any]) -> Batch:
        if next(counted, None) is None:
            raise Killed
        return collate(points)

    return collate_or_die


@pytest.mark.parametrize("num_batches", [2, 11, 23])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, num_batches: int) -> None:
    settings = settings_with(batch__microbatch=2)
    whole, cut = make_job(), make_job(collate=killed_after(num_batches))
    expected = start(whole, settings, tmp_path / "whole")
    with pytest.raises(Killed):
        start(cut, settings, tmp_path / "cut")
    again = make_job()
    found = resume(again, settings, tmp_path / "cut")
    assert torch.equal(again.model.weight, whole.model.weight)  # type: ignore[arg-type]
    assert (found.best_step, found.best_value) == (expected.best_step, expected.best_value)
    lines = [
        [{k: v for k, v in line.items() if not k.endswith("_s")} for line in read_metrics(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert lines[0] == lines[1]


def unwrapped(model: nn.Module, batch: Batch) -> Tensor:
    """The loss, of the model itself."""
    assert isinstance(model, Net)
    return loss(model, batch)


def test_of_several_gpus_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TrainingArguments.__dict__["_setup_devices"]

    def seen(arguments: TrainingArguments) -> torch.device:
        found = real.__get__(arguments, TrainingArguments)
        arguments._n_gpu = 8
        return found

    finding = cached_property(seen)
    finding.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", finding)
    assert start(make_job(loss=unwrapped), Settings(), tmp_path / "r").step == 12


def test_a_launcher_of_one_process_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # also what DeepSpeed leaves behind in a notebook
    assert start(make_job(loss=unwrapped), Settings(), tmp_path / "r").step == 12


def test_frozen_weights_are_not_saved(tmp_path: Path) -> None:
    start(make_job(), Settings(), tmp_path / "r")
    checkpoint = checkpoints.listed(tmp_path / "r" / "checkpoints")[-1]
    with trainer_bridge.load_weights.__globals__["safe_open"](checkpoint / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == {"weight"}


def test_8x1_equals_1x8(tmp_path: Path) -> None:
    def by_length(batch: Batch) -> int:
        return int(batch["y"].mul(10).round().sum()) + len(batch["y"])  # examples weigh differently

    class Surely(Net):
        def forward(self, x_BF: Tensor) -> Tensor:
            return x_BF @ self.weight

    weights = []
    for size in (8, 1):
        job = make_job(num_targets=by_length, model=Surely())
        start(job, settings_with(batch__examples=8, batch__microbatch=size), tmp_path / str(size))
        weights.append(job.model.weight)
    assert torch.allclose(weights[0], weights[1], atol=1e-6)  # type: ignore[arg-type]


def test_the_best_step_is_kept_and_given_back(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0, 2.5])
    weights = {}
    job = make_job()

    def check(model: nn.Module) -> dict[str, float]:
        value = next(values)
        weights[value] = model.weight.detach().clone()  # type: ignore[operator]
        return {"validation_loss": value}

    job.check = check
    progress = start(job, settings_with(run__checkpoint_every=1), tmp_path / "r")
    assert (progress.best_step, progress.best_value) == (6, 1.0)
    assert torch.equal(job.model.weight, weights[1.0])  # type: ignore[arg-type]
    assert [p.name for p in checkpoints.listed(tmp_path / "r" / "checkpoints")] == [
        "step-000006",
        "step-000011",
        "step-000012",
    ]


def test_higher_may_be_better(tmp_path: Path) -> None:
    values = iter([0.5, 0.9, 0.9, 0.2])
    job = make_job(
        check=lambda model: {"validation_loss": 1.0, "validation_bits_per_byte": next(values)},
        best="validation_bits_per_byte",
        lower_is_better=False,
    )
    assert start(job, Settings(), tmp_path / "r").best_step == 6


def test_it_stops_early_and_goes_on_when_asked_for_more(tmp_path: Path) -> None:
    values = iter([1.0, 2.0, 3.0, 0.5, 0.4])
    job = make_job(check=lambda model: {"validation_loss": next(values)})
    settings = settings_with(validation__patience=2)
    progress = start(job, settings, tmp_path / "r")
    assert (progress.step, progress.best_step) == (9, 3)
    assert resume(job, settings, tmp_path / "r").step == 9  # killed before it was finished: nothing to train
    more = settings_with(validation__patience=2, run__max_steps=15)
    assert resume(job, more, tmp_path / "r").best_step == 15


def test_patience_counts_from_the_best_step(tmp_path: Path) -> None:
    values = iter([1.0, 2.0, 0.9, 2.0, 0.8, 0.7])
    job = make_job(check=lambda model: {"validation_loss": next(values)})
    assert start(job, settings_with(validation__patience=2, validation__every=2), tmp_path / "r").best_step == 12


def test_a_damaged_best_step_gives_way_to_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = iter([3.0, 1.0, 2.0, 2.5])
    start(make_job(check=lambda model: {"validation_loss": next(values)}), Settings(), tmp_path / "r")
    best, last = (tmp_path / "r" / "checkpoints" / f"step-{step:06d}" for step in (6, 12))
    (best / "weights.safetensors").write_bytes(b"damaged")
    job, expected = make_job(), Net()
    resume(job, Settings(), tmp_path / "r")
    assert "the model has the weights of the last step instead of the best" in capsys.readouterr().err
    trainer_bridge.load_weights(expected, last)
    assert torch.equal(job.model.weight, expected.weight)  # type: ignore[arg-type]


def test_the_trainer_is_set_as_was_asked(tmp_path: Path) -> None:
    asked = {"learning_rate": 0.6, "schedule": "cosine", "warmup": 0.25, "weight_decay": 0.3, "beta2": 0.7}
    settings = settings_with(run__log_every=1, optim__clip_norm=7.0, **{f"optim__{k}": v for k, v in asked.items()})
    start(make_job(), settings, tmp_path / "r")
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "r")]
    assert rates == pytest.approx([0, 0.2, 0.4, *(0.3 + 0.3 * math.cos(math.pi * n / 9) for n in range(9))])
    with rundir.create(settings, tmp_path / "made") as folder:
        trainer = trainer_bridge._make(make_job(), settings, folder, "transformers")
        group = trainer.create_optimizer().param_groups[0]
        assert (group["betas"], group["weight_decay"], trainer.args.max_grad_norm) == ((0.9, 0.7), 0.3, 7)


def test_the_speed_is_that_since_the_last_line(tmp_path: Path) -> None:
    with rundir.create(Settings(), tmp_path / "r") as folder:
        trainer = trainer_bridge._make(make_job(), Settings(), folder, "transformers")
        for trainer.progress.tokens, trainer._busy_s in ((60, 2.0), (100, 4.0)):
            trainer.log({"loss": 1.0, "learning_rate": 0.1})
    assert [line["tokens_per_s"] for line in read_metrics(tmp_path / "r")] == [30, 10]


def test_sigterm_writes_a_checkpoint(tmp_path: Path) -> None:
    def collate_and_stop(points: list[Any], seen: list[int] = []) -> Batch:  # noqa: B006
        seen.append(1)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return collate(points)

    with pytest.raises(Interrupted, match=r"stopped at step \d; continue with --resume"):
        start(make_job(collate=collate_and_stop), Settings(), tmp_path / "r")
    newest = checkpoints.newest_whole(tmp_path / "r" / "checkpoints")
    assert newest is not None
    assert checkpoints.step_of(newest) in (5, 6)
    again, whole = make_job(), make_job()
    resume(again, Settings(), tmp_path / "r")
    start(whole, Settings(), tmp_path / "whole")
    assert torch.equal(again.model.weight, whole.model.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path, what: str) -> None:
    def bad(model: nn.Module, batch: Batch, calls: list[int] = []) -> Tensor:  # noqa: B006
        calls.append(1)
        value = loss(model, batch)
        if len(calls) < 5:
            return value
        return value * float("nan") if what == "loss" else (value - value.detach()).sqrt()

    with pytest.raises(RunFailed, match=r"step \d: the (loss|gradient's norm) is nan; lower --optim.learning-rate"):
        start(make_job(loss=bad), Settings(), tmp_path / "r")


def test_epochs_become_steps_once(tmp_path: Path) -> None:
    settings = settings_with(batch__epochs=2, run__threads=0, run__device="auto", run__dtype="auto")
    plain = trainer_bridge.resolved(settings, 18)
    assert (plain.run.max_steps, plain.batch.epochs) == (10, None)  # 5 batches of 4 hold 18
    assert plain.run.threads >= 1
    assert trainer_bridge.resolved(plain, 18) == plain
    assert trainer_bridge.resolved(settings_with(batch__epochs=9), 18).run.max_steps == 12


def test_samples_are_written_at_checks_and_not_twice(tmp_path: Path) -> None:
    job = make_job(sample=lambda model, step: [{"prompt": "p", "text": f"at {step}"}])
    start(job, Settings(), tmp_path / "r")
    rows = [json.loads(line) for line in (tmp_path / "r" / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["text"]) for row in rows] == [(n, f"at {n}") for n in (3, 6, 9, 12)]
