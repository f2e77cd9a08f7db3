"""What a training loop measures: loss, bits per byte, tokens a second, share of the machine's peak."""

import math
import time
from typing import Any

from fledge import console, device, processes
from fledge.engine import StepResult
from pretrain.session import Session


class Meter:
    """Collects steps and makes a line of metrics.jsonl every `run.log_every` of them."""

    def __init__(self, session: Session, tokens_per_byte: float | None) -> None:
        settings = session.config
        self._session, self._tokens_per_byte = session, tokens_per_byte
        self._tokens_per_step = settings.batch.sequences * settings.model.context
        self._peak = processes.size() * device.matmul_peak(settings.run.device, settings.run.dtype)
        self._nominal = processes.size() * (device.nominal_peak(settings.run.device) or 0.0)
        self._busy_s, self._steps = 0.0, 0
        self._clock = time.perf_counter()
        self.text = ""  # beside the progress bar

    def tick(self) -> float:
        """Seconds since the last tick; all of them count as the run's time."""
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        self._session.counters.elapsed_s += passed
        return passed

    def after_step(self, result: StepResult, step_s: float) -> dict[str, Any]:
        """Count a step that took `step_s`; the metrics to log now, or nothing."""
        self._busy_s += step_s
        self._steps += 1
        counters, settings = self._session.counters, self._session.config
        if counters.step % settings.run.log_every and counters.step != settings.run.max_steps:
            return {}
        finite = [loss for loss in counters.recent_losses if math.isfinite(loss)]
        tokens_per_s = self._steps * self._tokens_per_step / max(self._busy_s, 1e-9)
        flops_per_s = tokens_per_s * self._session.flops_per_token
        metrics = {
            "learning_rate": self._session.learning_rate,
            "gradient_norm": result.gradient_norm if math.isfinite(result.gradient_norm) else None,
            "tokens": counters.batch_index * self._tokens_per_step,
            "tokens_per_s": round(tokens_per_s, 1),
            "mfu": round(flops_per_s / self._peak, 4),
            "elapsed_s": round(counters.elapsed_s, 3),
        }
        if finite:
            loss = sum(finite) / len(finite)
            metrics["loss"] = loss
            if self._tokens_per_byte is not None:
                metrics["bits_per_byte"] = loss / math.log(2) * self._tokens_per_byte
        if self._nominal:
            metrics["mfu_nominal"] = round(flops_per_s / self._nominal, 4)
        if self._session.guard.skipped:
            metrics["skipped_steps"] = self._session.guard.skipped
        if self._session.guard.rollbacks:
            metrics["rollbacks"] = self._session.guard.rollbacks
        self._busy_s, self._steps = 0.0, 0
        counters.recent_losses.clear()
        self.text = self._line(metrics)
        return metrics

    def _line(self, metrics: dict[str, Any]) -> str:
        loss = f"loss {metrics['loss']:.3f}  " if "loss" in metrics else ""
        loss += f"{metrics['bits_per_byte']:.3f} bits/byte  " if "bits_per_byte" in metrics else ""
        return f"{loss}{console.format_count(metrics['tokens_per_s'])} tokens/s  {metrics['mfu']:.0%} of peak"
