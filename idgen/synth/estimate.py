"""What a command would make, what it needs, and how long that takes: before anything is made."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from idgen.opening import Kit
from idgen.synth.identities import memory_bytes
from idgen.synth.painting import Painter
from idgen.synth.plan import Plan
from idgen.synth.recipe import Recipe
from idgen.synth.wording import number_of

if TYPE_CHECKING:
    from idgen.synth.folder import DatasetFolder

TRIED_STEPS = (1, 3)  # of two short drawings, from which the time of a long one follows


def estimate(
    recipe: Recipe, kit: Kit, plan: Plan, dataset: "DatasetFolder", devices: Sequence[str]
) -> list[str]:
    """Lines for the user; a micro-batch of the plan is drawn, with few steps, to see how fast that is.

    Args:
        recipe: what would be made.
        kit: of the model.
        plan: likewise.
        dataset: what is there already.
        devices: that would work at once.
    """
    layout, missing = recipe.layout, dataset.missing()
    left = layout.num_pictures(plan, missing)
    num_identities = int(plan.numbers("person").max()) + 1
    people_bytes = memory_bytes(num_identities, kit.encoder.dim)
    seconds = seconds_a_picture(Painter(recipe, kit, devices[0]), plan, kit.encoder.dim)
    pixels = 3 * layout.width * layout.height
    return [
        f"{recipe.dataset}: {left:,} of {number_of(len(plan), 'picture')} of "
        f"{number_of(plan.num_people, 'person')} {'is' if left == 1 else 'are'} to be made, {layout.width} x "
        f"{layout.height} pixels, in {len(missing):,} of {number_of(dataset.num_shards, 'shard')}",
        f"finding {number_of(num_identities, 'person')} needs {_size(people_bytes)}; "
        f"besides the model, each process holds up to {_size(2 * pixels * len(plan) // dataset.num_shards)} "
        f"of pictures; on the disk {_size(left * pixels)} at most",
        f"drawing takes {seconds:.3g} s a picture on {devices[0]}: {_time(left * seconds / len(devices))} on "
        f"{number_of(len(devices), 'such device')}, and longer by the share of pictures that are drawn again",
    ]


def seconds_a_picture(painter: Painter, plan: Plan, dim: int) -> float:
    """Measured on one micro-batch, with few steps, and reckoned for all of them."""
    pictures = [picture for person in plan.people(0, 64) for picture in person.pictures]
    batch = pictures[: painter.recipe.layout.batch_size]
    drawn = np.random.default_rng(0).standard_normal((len(batch), dim))
    people = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    seeds = [picture.seed for picture in batch]
    painter.draw(batch, people, seeds, steps=1)  # the first time is slower
    seconds = []
    for steps in TRIED_STEPS:
        start = time.perf_counter()
        painter.draw(batch, people, seeds, steps=steps)
        seconds.append(time.perf_counter() - start)
    few, many = TRIED_STEPS
    a_step = max(0.0, seconds[1] - seconds[0]) / (many - few)
    return (seconds[0] + a_step * (painter.steps - few)) / len(batch)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{max(1, num_bytes >> 20)} MiB"


def _time(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
