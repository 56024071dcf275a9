"""IDPipelineXL on tiny real SDXL: the same contracts, with two text encoders, pooled text and sizes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import write_adapter
from idgen.errors import ConfigError
from idgen.identity import Identity
from idgen.pipeline import Defaults, IDPipeline, IDPipelineXL, open_pipeline

Person = Callable[..., Identity]


@pytest.fixture
def pipe(tiny_sdxl: dict[str, Any], random_adapter: Callable[..., Any], tmp_path: Path) -> IDPipelineXL:
    card = AdapterCard(base_model="tiny", encoder="tiny@0123456789ab", num_tokens=4, licence="none")
    write_adapter(tmp_path / "who.safetensors", random_adapter(tiny_sdxl["unet"], lora_rank=2), card)
    pipe = IDPipelineXL(**tiny_sdxl)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_adapter(tmp_path / "who.safetensors")
    return pipe


def latents(pipe: Any, prompt: str | list[str] = "a face", **settings: Any) -> Tensor:
    settings = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 16, "width": 16, **settings}
    return pipe(prompt, output_type="latent", **settings).images


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_each_row_equals_the_same_picture_made_alone(
    pipe: IDPipelineXL, person: Person, guidance_scale: float
) -> None:
    prompts, second, seeds = ["a face", "old man"], ["soft", "hard light"], [5, 9]
    people: list[Any] = [[person(1), person(2)], person(3)]
    settings = {"guidance_scale": guidance_scale, "negative_prompt": "bad", "num_images_per_prompt": 2}
    together = latents(
        pipe, prompts, prompt_2=second, identity=people, seed=seeds, id_scale=[1, 0.6], **settings
    )
    for i in range(2):
        alone = latents(
            pipe,
            prompts[i],
            prompt_2=second[i],
            identity=[people[i]],
            seed=[seeds[i]],
            id_scale=[1, 0.6][i],
            **settings,
        )
        close(together[2 * i : 2 * i + 2], alone)
    swapped = latents(pipe, prompts, prompt_2=second, identity=people[::-1], seed=seeds, **settings)
    assert (swapped - together).abs().amax((1, 2, 3)).min() > 0.05


def test_strength_zero_nobody_and_unloading_are_the_base_model(
    pipe: IDPipelineXL, tiny_sdxl: dict[str, Any], person: Person
) -> None:
    stock = StableDiffusionXLPipeline(**copy.deepcopy(tiny_sdxl))
    stock.set_progress_bar_config(disable=True)
    base = latents(stock, ["a face"] * 2, generator=[torch.Generator().manual_seed(s) for s in (3, 4)])
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3), base)
    mixed = latents(pipe, ["a face"] * 2, seed=3, identity=person(1), id_scale=[1, 0])
    assert torch.equal(mixed[1], base[1])
    assert (mixed - base)[0].abs().max() > 0.05
    pipe.unload_adapter()
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3), base)


def test_the_window_counts_the_steps_that_are_run(pipe: IDPipelineXL, person: Person) -> None:
    base = latents(pipe, seed=3, num_inference_steps=8, denoising_end=0.5)
    late = {"identity": person(1), "id_start": 0.9}  # of four steps none starts that late
    assert torch.equal(latents(pipe, seed=3, num_inference_steps=8, denoising_end=0.5, **late), base)
    late["id_start"] = 0.75
    assert not torch.equal(latents(pipe, seed=3, num_inference_steps=8, denoising_end=0.5, **late), base)


def test_saved_and_opened_again_it_is_the_same(pipe: IDPipelineXL, person: Person, tmp_path: Path) -> None:
    expected = latents(pipe, identity=person(1), seed=3)
    base = latents(pipe, seed=3)
    pipe.save_pretrained(tmp_path / "saved")
    again = open_pipeline(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert type(again) is IDPipelineXL
    assert again.defaults == Defaults(num_inference_steps=30, guidance_scale=5.0)
    assert torch.equal(latents(again, identity=person(1), seed=3), expected)
    plain = StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved")
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(latents(plain, generator=torch.Generator().manual_seed(3)), base)
    with pytest.raises(ConfigError, match="is a StableDiffusionXLPipeline; open it with IDPipelineXL"):
        IDPipeline.from_pretrained(tmp_path / "saved")
