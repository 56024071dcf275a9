import math

import pytest

from idgen.diffusion.schedule import IDSchedule
from idgen.errors import ConfigError

LAYERS = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
    "mid_block.attentions.0.transformer_blocks.0.attn2",
]


def test_window_opens_and_closes_at_whole_steps() -> None:
    schedule = IDSchedule(scale=(1.0,), id_start=0.3, id_end=0.8)
    assert [schedule.window(i, 10) for i in range(10)] == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert all(IDSchedule(scale=(1.0,)).window(i, 7) for i in range(7))


def test_the_finest_name_counts_and_unnamed_layers_keep_one() -> None:
    schedule = IDSchedule(scale=(1.0,), layers={"up": 0.2, "up.1.1": 0.7, "mid": 0})
    assert list(schedule.layer_scale(LAYERS).values()) == [1, 1, 0.2, 0.7, 0]


def test_a_group_that_the_unet_has_not_is_refused_with_the_nearest_name() -> None:
    schedule = IDSchedule(scale=(1.0,), layers={"middle": 0.5})
    with pytest.raises(ConfigError, match=r"no 'middle'; did you mean 'mid'\? \(it has: down, down.0,"):
        schedule.layer_scale(LAYERS)


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf, "1", True, None])
def test_a_strength_that_is_no_finite_number_is_refused(scale: object) -> None:
    with pytest.raises(ConfigError, match=r"id_scale\[1\] must be a finite number >= 0"):
        IDSchedule(scale=(1.0, scale))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"id_layers\['up'\] must be a finite number >= 0"):
        IDSchedule(scale=(1.0,), layers={"up": scale})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 1), (0, 1.1), (math.nan, 1)])
def test_a_window_that_is_empty_or_outside_is_refused(start: float, end: float) -> None:
    with pytest.raises(ConfigError, match="0 <= id_start < id_end <= 1"):
        IDSchedule(scale=(1.0,), id_start=start, id_end=end)
