"""metrics.jsonl: one object a step, one vocabulary of names for all stages; mirrored to trackers if asked."""

import contextlib
import importlib.util
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fledge.atomic import disk_errors, write_file
from fledge.errors import RunError

# Every name that may stand in metrics.jsonl, with its unit.
METRICS = {
    "step": "steps",
    "loss": "nats/token",
    "bits_per_byte": "bits/byte",
    "learning_rate": "",
    "gradient_norm": "",
    "tokens": "tokens",
    "tokens_per_s": "tokens/s",
    "mfu": "share of the measured matmul peak",
    "mfu_nominal": "share of the data sheet's peak",
    "elapsed_s": "s",
    "validation_loss": "nats/token",
    "validation_bits_per_byte": "bits/byte",
    "validation_accuracy": "share",
    "validation_margin": "",
    "parent_validation_loss": "nats/token",
    "parent_validation_bits_per_byte": "bits/byte",
    "reward": "",
    "validation_reward": "",
    "validation_gold_reward": "",
    "validation_reward_error": "",  # standard error of the mean, so below
    "validation_gold_reward_error": "",
    "kl": "nats/answer",
    "validation_kl": "nats/answer",
    "kl_weight": "reward/nat",
    "entropy": "nats/token",
    "policy_loss": "",
    "value_loss": "",
    "explained_variance": "share",
    "clipped_share": "share",
    "ratio_error": "",
    "step_kl": "nats/token",
    "updates": "",
    "answer_tokens": "tokens",
    "stopped_share": "share",
    "idle_share": "share of the prompts, all answers to which earned the same",
    "generating_share": "share of the time",
    "skipped_steps": "steps",
    "rollbacks": "",
}


class MetricsLog:
    """Appends metrics to `metrics.jsonl` and to the trackers; a resumed run first drops what is newer."""

    def __init__(self, run: Path, trackers: list[str], keep_to_step: int | None) -> None:
        self._path = run / "metrics.jsonl"
        if keep_to_step is not None:
            write_file(self._path, "".join(line for line in whole_lines(self._path) if _step(line) <= keep_to_step))
        self._file: TextIO = self._path.open("a", encoding="utf-8")
        self._trackers = [_open_tracker(name, run, keep_to_step) for name in trackers]

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one object; its names are those of METRICS and it has a step."""
        assert set(metrics) <= set(METRICS), f"not in METRICS: {set(metrics) - set(METRICS)}"
        with disk_errors(self._path):
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
        for tracker in self._trackers:
            tracker(metrics)

    def close(self) -> None:
        """Close the file and the trackers."""
        with contextlib.suppress(OSError):  # `log` has flushed and told; only what a full disk refused is left
            self._file.close()
        for tracker in self._trackers:
            tracker(None)


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that each tracker's library is installed.

    Raises:
        RunError: one is not; names the extra.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RunError(f"--run.trackers {name}: not installed; pip install 'fledge-lm[{name}]'")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl; an empty list when there is none."""
    return [json.loads(line) for line in whole_lines(run / "metrics.jsonl")]


def last_loss(run: Path) -> float | None:
    """The last loss in a run's metrics.jsonl, nats/token, or None; a long file is read from its end."""
    path = run / "metrics.jsonl"
    size_bytes = path.stat().st_size if path.is_file() else 0
    for length in (1 << 16, size_bytes) if size_bytes else ():  # some hundred steps, or all
        with path.open("rb") as file:
            file.seek(max(0, size_bytes - length))
            lines = file.read().split(b"\n")[length < size_bytes : -1]  # whole ones
        if losses := [found["loss"] for found in map(json.loads, lines) if "loss" in found]:
            return float(losses[-1])
    return None


def whole_lines(path: Path) -> list[str]:
    """The whole lines of a JSON lines file, none where it is missing; a last line cut by a kill is left out."""
    if not path.is_file():
        return []
    # Not str.splitlines: it also cuts at U+2028 and the like, which JSON leaves as they are inside of a text.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [line.decode("utf-8") + "\n" for line in lines]


def _step(line: str) -> int:
    return int(json.loads(line)["step"])


def _open_tracker(name: str, run: Path, resumed_at: int | None) -> Any:
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        # Hides what the killed run had logged after the checkpoint: this step and all later ones.
        purged = None if resumed_at is None else resumed_at + 1
        writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=purged)

        def to_tensorboard(metrics: dict[str, Any] | None) -> None:
            if metrics is None:
                writer.close()
                return
            for key, value in metrics.items():
                if key != "step" and value is not None:
                    writer.add_scalar(key, value, metrics["step"])

        return to_tensorboard
    import wandb

    own_id = run / "wandb-id"  # so that a resumed run goes on in the same one of theirs, whatever its folder is called
    if not own_id.is_file():
        write_file(own_id, uuid.uuid4().hex)
    found = own_id.read_text(encoding="utf-8")
    session = wandb.init(project="fledge", name=run.name, dir=str(run), id=found, resume="allow")

    def to_wandb(metrics: dict[str, Any] | None) -> None:
        if metrics is None:
            session.finish()
        else:
            session.log({k: v for k, v in metrics.items() if k != "step"}, step=metrics["step"])

    return to_wandb
