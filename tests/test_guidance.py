"""Guidance of the identity apart from the text's, against the formula computed by hand."""

from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import AdapterFile, read_adapter, write_adapter
from idgen.adapters.install import IDAdapter
from idgen.errors import ConfigError
from idgen.identity import Identity
from idgen.pipeline import IDPipeline, IDPipelineXL

ENCODER = "tiny@0123456789ab"


@pytest.fixture
def pipe(
    tiny_sd: dict[str, object],
    random_adapter: Callable[..., IDAdapter],
    tmp_path_factory: pytest.TempPathFactory,
) -> IDPipeline:
    made = IDPipeline(**tiny_sd, safety_checker=None, feature_extractor=None, requires_safety_checker=False)  # pyright: ignore
    made.load_adapter(adapter_file(random_adapter(made.unet), tmp_path_factory))
    made.set_progress_bar_config(disable=True)
    return made


def adapter_file(adapter: IDAdapter, tmp_path_factory: pytest.TempPathFactory) -> AdapterFile:
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    card = AdapterCard(base_model="tiny", encoder=ENCODER, num_tokens=adapter.num_tokens, licence="for tests")
    write_adapter(path, adapter, card)
    return read_adapter(path)


def by_hand(pipe: IDPipeline, who: Identity, noise: Tensor, text_scale: float, id_scale: float) -> Tensor:
    """One step from pure noise with three calls of the UNet."""
    assert pipe.adapter is not None
    adapter, vector = pipe.adapter.adapter, torch.from_numpy(who.face_vector.value.copy())[None]
    pipe.scheduler.set_timesteps(1)
    (t,) = pipe.scheduler.timesteps
    text, empty = (pipe.encode_prompt(p, "cpu", 1, False)[0] for p in ("a face", ""))

    def ask(hidden: Tensor, embedding: Tensor) -> Tensor:
        adapter.condition(embedding)
        with torch.no_grad():
            return pipe.unet(noise, t, encoder_hidden_states=hidden).sample

    nobody = torch.zeros_like(vector)
    u, only_text, both = ask(empty, nobody), ask(text, nobody), ask(text, vector)
    adapter.clear()
    guided = u + text_scale * (only_text - u) + id_scale * (both - only_text)
    return pipe.scheduler.step(guided, t, noise).prev_sample


@pytest.mark.parametrize("id_scale", [0.0, 2.0, 9.0])
def test_one_step_is_the_formula(pipe: IDPipeline, person: Callable[..., Identity], id_scale: float) -> None:
    noise = torch.randn(1, 4, 8, 8)
    made = pipe("a face", identity=person(0), latents=noise, guidance_scale=4.0, id_guidance_scale=id_scale,
                num_inference_steps=1, output_type="latent").images  # fmt: skip
    assert torch.allclose(made, by_hand(pipe, person(0), noise, 4.0, id_scale), atol=1e-4)


def test_equal_scales_are_ordinary_guidance_and_rows_stay_apart(
    pipe: IDPipeline, person: Callable[..., Identity]
) -> None:
    common = {"seed": [1, 2], "guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    people = [person(0), person(1)]
    plain = pipe(["a face", "b"], identity=people, **common).images
    apart = pipe(["a face", "b"], identity=people, id_guidance_scale=3.0, **common).images
    assert torch.allclose(plain, apart, atol=1e-4)
    stronger = pipe(["a face", "b"], identity=people, id_guidance_scale=6.0, **common).images
    assert not torch.allclose(stronger, apart, atol=1e-2)
    alone = pipe("b", identity=person(1), id_guidance_scale=6.0, **{**common, "seed": 2}).images
    assert torch.allclose(stronger[1:], alone, atol=1e-4)
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.unet._forward_hooks


def test_rows_of_nobody_and_of_strength_0_are_the_base_model(
    pipe: IDPipeline, person: Callable[..., Identity]
) -> None:
    common = {"seed": [1, 2, 3], "guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    base = pipe(["a face"] * 3, **common).images
    made = pipe(["a face"] * 3, identity=[None, person(0), person(0)], id_scale=[1.0, 0.0, 1.0],
                id_guidance_scale=8.0, **common).images  # fmt: skip
    assert torch.allclose(made[:2], base[:2], atol=1e-4)
    assert not torch.allclose(made[2], base[2], atol=1e-2)


def test_sdxl_takes_it_too(
    tiny_sdxl: dict[str, object], random_adapter: Callable[..., IDAdapter],
    tmp_path_factory: pytest.TempPathFactory, person: Callable[..., Identity],
) -> None:  # fmt: skip
    pipe = IDPipelineXL(**tiny_sdxl)  # pyright: ignore
    assert isinstance(pipe, StableDiffusionXLPipeline)
    pipe.load_adapter(adapter_file(random_adapter(pipe.unet), tmp_path_factory))
    pipe.set_progress_bar_config(disable=True)
    common = {"seed": 1, "guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    plain = pipe("a face", identity=person(0), **common).images
    assert torch.allclose(
        plain, pipe("a face", identity=person(0), id_guidance_scale=3.0, **common).images, atol=1e-4
    )


def test_it_needs_guidance(pipe: IDPipeline, person: Callable[..., Identity]) -> None:
    for guidance, said in (
        (1.0, "must be greater than 1, got 1"),
        (4.0, "id_guidance_scale must be a finite"),
    ):
        with pytest.raises(ConfigError, match=said):
            pipe("a face", identity=person(0), guidance_scale=guidance, id_guidance_scale=-1.0)
