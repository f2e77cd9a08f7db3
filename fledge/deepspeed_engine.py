"""One training step on DeepSpeed: ZeRO 0-3, one or several processes; the methods of `fledge.engine.Engine`."""

import contextlib
import importlib.util
import logging
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge import processes
from fledge.engine import StepResult, require_compiler
from fledge.errors import RunError, RunFailed
from fledge.models import architecture
from fledge.models.architecture import LanguageModel

if not torch.cuda.is_available():  # PEFT and accelerate import DeepSpeed, which else tells stdout that it guesses
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Numbers in one message between processes: 25 MB in float32, as torch's DDP has it. DeepSpeed's own 5e8 takes 2 GB
# whatever the model's size, and its copies no longer fit into any cache (LOG.md).
BUCKET = 6_250_000
TAG, UNIVERSAL = "state", "universal"  # folders in a checkpoint, as DeepSpeed calls them
# The classes that DeepSpeed's checkpoints need besides torch's own.
DEEPSPEEDS_OWN = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


@dataclass(frozen=True)
class Plan:
    """How DeepSpeed is to train."""

    zero: int  # 0: every process has all; 1: shares of the optimizer, 2: and of gradients, 3: and of weights
    sequences: int  # a step, over all processes
    microbatch: int  # sequences a process, in one forward and backward
    clip_norm: float  # 0 clips nothing
    device: str
    dtype: torch.dtype  # of the forward and backward pass
    bf16_weights: bool = False  # keep bfloat16 weights with float32 masters, instead of autocasting

    def config(self) -> dict[str, Any]:
        """DeepSpeed's own config, without an optimizer."""
        steps = self.sequences // (self.microbatch * processes.size())
        config: dict[str, Any] = {
            "train_batch_size": self.sequences,
            "train_micro_batch_size_per_gpu": self.microbatch,
            "gradient_accumulation_steps": steps,
            "gradient_clipping": self.clip_norm if self.zero else 0.0,  # at 0 we clip, as the plain engine does
            "zero_optimization": {
                "stage": self.zero,
                "stage3_param_persistence_threshold": 10_000,
                "reduce_bucket_size": BUCKET,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
        }
        if self.bf16_weights:
            config["bf16"] = {"enabled": True}
        elif self.dtype == torch.bfloat16:
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return config


@dataclass(frozen=True)
class OwnOptimizer:
    """An optimizer that DeepSpeed makes itself."""

    section: dict[str, Any]  # `optimizer` of its config
    groups: list[dict[str, Any]]


def require_deepspeed() -> None:
    """Make sure that DeepSpeed is installed.

    Raises:
        RunError: it is not; names the extra.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise RunError("--engine.kind deepspeed: not installed; pip install 'fledge-lm[deepspeed]'")


class DeepSpeedEngine:
    """DeepSpeed over all processes of the run."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer | OwnOptimizer, plan: Plan) -> None:
        deepspeed = _import_deepspeed(plan.device)
        processes.make_group()
        self.model, self._plan, self._is_compiled = model, plan, False
        self._is_muon = isinstance(optimizer, OwnOptimizer)
        embeddings = getattr(model, "token_embed", None)
        self._vocabulary_rows = 0 if embeddings is None else len(embeddings.weight)  # none of them here at ZeRO 3
        config = plan.config()
        if isinstance(optimizer, OwnOptimizer):
            config["optimizer"] = optimizer.section
            config["zero_optimization"]["reduce_scatter"] = plan.zero < 3  # DeepSpeed's Muon asks for it
            given: dict[str, Any] = {"model_parameters": optimizer.groups}
        else:
            given = {"optimizer": optimizer}
        self._engine = deepspeed.initialize(model=model, config=config, **given)[0]
        self._gather = deepspeed.zero.GatheredParameters
        if plan.zero == 3:  # the head's weight is used outside of its own module's forward
            deepspeed.zero.register_external_parameter(model, model.head_weight)
        self._peaks = [group["lr"] for group in self._engine.optimizer.param_groups]

    def step(self, microbatches: list[tuple[Tensor, Tensor]]) -> StepResult:
        """One optimizer update from this process's microbatches, all with equally many targets.

        Returns:
            the loss over all processes; where it or the gradient is not finite, nothing was updated.
        """
        self.model.train()
        loss_sum, norm = torch.zeros((), device=self._plan.device), math.inf
        for number, (ids_BT, targets_BT) in enumerate(microbatches, 1):
            loss = self._engine(ids_BT, targets_BT)
            self._engine.backward(loss)
            loss_sum += loss.detach()
            if number == len(microbatches) and self._plan.zero == 0:
                norm = self._clip()
            self._engine.step()
            processes.progress()
        loss_mean = processes.total(float(loss_sum) / len(microbatches))[0] / processes.size()
        return self._result(loss_mean, norm)

    def update(self, losses: Sequence[Callable[[], Tensor]]) -> StepResult:
        """One optimizer update from the sum of some losses over all processes, equally many in each; ZeRO 0 to 2.

        The plan's microbatches do not count: each call is one update, whatever the number of losses.
        """
        loss_sum, norm = torch.zeros((), device=self._plan.device), math.inf
        for number, compute in enumerate(losses, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(losses))
            with self.evaluation():
                loss = compute()
            self._engine.backward(loss * processes.size())  # DeepSpeed takes the mean over processes
            loss_sum += loss.detach()
        if self._plan.zero == 0:
            norm = self._clip()
        self._engine.step()
        return self._result(processes.total(float(loss_sum))[0], norm)

    def _result(self, loss: float, norm: float) -> StepResult:
        """What was measured; the norm is DeepSpeed's own, unless without ZeRO."""
        if self._plan.zero:
            norm = float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else math.inf
        return StepResult(loss, norm, math.isfinite(loss) and math.isfinite(norm))

    def _clip(self) -> float:
        """Clip without ZeRO; where the gradient is not finite, it is dropped, so that nothing is updated."""
        parameters = list(self.model.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._plan.clip_norm or math.inf))
        if not math.isfinite(norm):
            for parameter in parameters:
                parameter.grad = None
        return norm

    def set_learning_rate(self, share: float) -> float:
        """Set every group to a share of its peak; returns the last group's learning rate."""
        for group, peak in zip(self._engine.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        return float(self._peaks[-1] * share)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Eager, in the training's number format; weights stay where they are."""
        is_autocast = self._plan.dtype != torch.float32 and not self._plan.bf16_weights
        with self._eager(), torch.autocast(self._plan.device, self._plan.dtype, enabled=is_autocast):
            processes.progress()
            yield

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[LanguageModel]:
        """The model for the first process, while the others wait; at ZeRO 3 a copy, as no process has all weights."""
        with self._eager():
            yield self._whole_copy() if self._plan.zero == 3 else self.model
            processes.wait_for_all()

    def _whole_copy(self) -> LanguageModel:
        copy = architecture.build(self.model.config, None, self._vocabulary_rows).to(self._plan.device)
        with self._gather(list(self.model.parameters())):
            copy.to(next(self.model.parameters()).dtype).load_state_dict(self.model.state_dict())
        return copy

    def _eager(self) -> contextlib.AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self._is_compiled else contextlib.nullcontext()

    def compile(self) -> None:
        """Compile the model as DeepSpeed does it."""
        require_compiler()
        self._engine.compile()
        self._is_compiled = True

    def save(self, checkpoint: Path) -> dict[str, Any]:
        """Write this process's share into the checkpoint."""
        info = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self._engine.save_checkpoint(str(checkpoint), tag=TAG, client_state=info, save_latest=False)
        return {"processes": processes.size(), "vocabulary_rows": self._vocabulary_rows}

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Take over a checkpoint; one of another number of processes is made universal first, beside the run's own.

        Raises:
            RunError: DeepSpeed's Muon is to go on in another number of processes, or a file may run code.
            RunFailed: DeepSpeed can't convert or load it.
        """
        if processes.is_first():
            _require_plain(checkpoint / TAG)
        processes.wait_for_all()
        before, now = state["processes"], processes.size()
        if self._plan.zero == 0 or before == now:
            self._load(checkpoint, TAG)
            return
        if self._is_muon:
            raise RunError(
                f"{checkpoint}: DeepSpeed's Muon can't go on from {before} to {now} processes, as its universal "
                f"checkpoints leave out the momentum; continue with {before}"
            )
        scratch = checkpoint.parent / f".{UNIVERSAL}.partial"
        if processes.is_first():
            _make_universal(checkpoint / TAG, scratch / UNIVERSAL)
        processes.wait_for_all()
        groups = self._engine.basic_optimizer.param_groups
        settings = [{name: value for name, value in g.items() if name != "params"} for g in groups]
        self._engine._config.load_universal_checkpoint = True
        self._load(scratch, UNIVERSAL)
        self._engine._config.load_universal_checkpoint = False
        # DeepSpeed gives all groups the settings of the first, and all states one count of steps, which is on the CPU.
        for group, own in zip(self._engine.basic_optimizer.param_groups, settings, strict=True):
            group.update(own)
        for weight, moments in self._engine.basic_optimizer.state.items():
            moments["step"] = moments["step"].to(weight.device, copy=True)
        processes.wait_for_all()
        if processes.is_first():
            shutil.rmtree(scratch)

    def _load(self, folder: Path, tag: str) -> None:
        if self._engine.load_checkpoint(str(folder), tag=tag)[0] is None:
            raise RunFailed(f"{folder}: DeepSpeed can't load it; continue from an older checkpoint")


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, silent, on this device, and without compiling kernels of its own."""
    require_deepspeed()
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", "0")
    # DeepSpeed calls torch by names that are about to change.
    warnings.filterwarnings("ignore", category=FutureWarning, message="`torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops
    import deepspeed.runtime.compiler

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if device == "cpu":
        # Two things that take it minutes to compile at first use: messages through shared memory (gloo's are as good
        # here), and Muon's few matrix products.
        deepspeed.ops.__compatible_ops__ = {}
        deepspeed.runtime.compiler.compile = lambda: lambda function: function
    return deepspeed


def _require_plain(folder: Path) -> None:
    """Make sure that unpickling, as DeepSpeed does it without limits, can run no code: by what the files name."""
    for file in sorted(folder.rglob("*.pt")):
        try:
            foreign = ", ".join({*torch.serialization.get_unsafe_globals_in_checkpoint(file)} - DEEPSPEEDS_OWN)
        except Exception as error:  # files that hold anything
            foreign = str(error)
        if foreign:
            raise RunError(f"{file}: may run code ({foreign}); delete {folder.parent} to go on from an older one")


def _make_universal(source: Path, target: Path) -> None:
    shutil.rmtree(target.parent, ignore_errors=True)
    folders = ["--input_folder", str(source), "--output_folder", str(target)]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*command, "--num_extract_workers", "1", "--num_merge_workers", "1"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        last_line = (done.stderr.strip() or done.stdout.strip()).split("\n")[-1]
        raise RunFailed(f"{source}: DeepSpeed can't convert it for {processes.size()} processes ({last_line})")
