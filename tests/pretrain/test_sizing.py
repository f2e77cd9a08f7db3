"""The size dial."""

import pytest

from fledge import config
from pretrain import sizing
from pretrain.config import TrainConfig


def test_the_dial_scales_batch_and_rate_from_the_configs_own_width() -> None:
    base = config.with_values(
        TrainConfig(data="x", size=8), {"model.width": 128, "batch.sequences": 8, "optim.learning_rate": 0.01}
    )
    found = sizing.from_depth(base)
    # 8 layers are 512 wide, four times 128: four times the sequences, half the rate
    assert (found["model.layers"], found["model.width"], found["model.heads"]) == (8, 512, 8)
    assert found["batch.sequences"] == 32
    assert found["optim.learning_rate"] == pytest.approx(0.005)


@pytest.mark.parametrize(("microbatch", "expected"), [(None, (13, None)), (4, (12, 4)), (16, (13, 13))])
def test_a_microbatch_outlasts_the_dial(microbatch: int | None, expected: tuple[int, int | None]) -> None:
    base = TrainConfig(data="x", size=2)  # 128 wide
    sized = {"model.width": 160, "batch.sequences": 16, "batch.microbatch": microbatch}
    found = sizing.from_depth(config.with_values(base, sized))
    # 16 x 128 / 160 = 12.8
    assert (found["batch.sequences"], found["batch.microbatch"]) == expected


def test_the_configs_own_width_changes_nothing_but_the_shape() -> None:
    base = config.with_values(TrainConfig(data="x", size=2), {"model.width": 128})
    found = sizing.from_depth(base)
    assert found["batch.sequences"] == base.batch.sequences
    assert found["optim.learning_rate"] == base.optim.learning_rate
