"""What the identity costs: idgen against plain diffusers, same weights, steps and batch, in one run.

    python benchmarks/generate.py --repeats 5

Each road is timed in turn, repeat after repeat, so that a busy machine slows all alike; the median counts.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch.nn.functional import normalize

from idgen import mini
from idgen.config import Parser
from idgen.identity import Identity
from idgen.pipeline import IDPipeline

PROMPT = "a photo of a person"


def random_people(pipe: IDPipeline, num_people: int) -> list[Identity]:
    """People who do not exist: unit vectors drawn at random."""
    assert pipe.adapter is not None
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(num_people, pipe.adapter.adapter.id_dim, generator=generator), dim=-1)
    return [Identity.from_vector(vector.numpy(), pipe.adapter.card.encoder) for vector in vectors]


def plain_pipeline(*, with_adapter: bool) -> StableDiffusionPipeline:
    """Mini in plain diffusers, with its FaceID file or without."""
    pipe = StableDiffusionPipeline.from_pretrained(mini.BASE, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if with_adapter:
        pipe.load_ip_adapter(
            str(mini.ADAPTER.parent), subfolder="", weight_name=mini.ADAPTER.name, image_encoder_folder=None,
            low_cpu_mem_usage=False,
        )  # fmt: skip
    return pipe


def roads(batch: int, steps: int) -> dict[str, Callable[[], Any]]:
    """The same pictures by several roads, by name; the first is the baseline of the others."""
    ours = IDPipeline.from_pretrained("mini")
    ours.set_progress_bar_config(disable=True)
    plain, stock = plain_pipeline(with_adapter=False), plain_pipeline(with_adapter=True)
    people = random_people(ours, 8)
    common = {
        "num_inference_steps": steps,
        "guidance_scale": ours.defaults.guidance_scale,
        "output_type": "pt",
    }
    vector = torch.from_numpy(people[0].face_vector.value)[None, None]
    embeds = [torch.cat([torch.zeros_like(vector), vector])]
    return {
        "plain diffusers, no identity": lambda: plain(PROMPT, num_images_per_prompt=batch, **common),
        "plain diffusers, load_ip_adapter": lambda: stock(
            PROMPT, num_images_per_prompt=batch, ip_adapter_image_embeds=embeds, **common
        ),
        "idgen, one person": lambda: ours(
            PROMPT, num_images_per_prompt=batch, identity=people[0], seed=0, **common
        ),
        "idgen, eight people, one call": lambda: ours([PROMPT] * 8, identity=people, seed=0, **common),
        "idgen, eight people, eight calls": lambda: [
            ours(PROMPT, identity=who, seed=i, **common) for i, who in enumerate(people)
        ],
    }


def measure(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each road, after one warm-up of all."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    parser = Parser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(argv)
    seconds = measure(roads(options.batch, options.steps), options.repeats)
    plain, stock, ours, together, apart = seconds.values()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{options.batch} pictures of {options.steps} steps each\n")
    print("| road | seconds |\n| --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} |")
    print(f"\nidgen / plain without identity: {ours / plain:.2f}")
    print(f"idgen / plain with load_ip_adapter: {ours / stock:.2f}")
    print(f"eight people in one call / in eight calls: {together / apart:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
