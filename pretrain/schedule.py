"""Learning-rate schedules as a share of the peak."""

import math

from pretrain.config import ScheduleConfig


def learning_rate_share(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """The share of the peak learning rate with which update `step` (from 0) is made.

    Linear warmup; then either flat and a linear decay at the end (warmup-stable-decay, Hu et al. 2024,
    arXiv 2404.06395) or half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983), down to `floor`.
    """
    warmup_steps = round(config.warmup * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.kind == "cosine":
        done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * done))
    decay_steps = round(config.decay * num_steps)
    left = num_steps - step
    if left > decay_steps:
        return 1.0
    return config.floor + (1 - config.floor) * left / (decay_steps + 1)
