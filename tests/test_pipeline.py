"""IDPipeline on tiny real Stable Diffusion: contracts, rows and seeds, samplers, saving, refusals."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

from idgen import mini
from idgen.adapters.call import picture_seeds
from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import write_adapter
from idgen.blocklist import VARIABLE, Blocklist
from idgen.encoders.arcface import mini_encoder
from idgen.errors import (
    ConfigError,
    EncoderMismatchError,
    ModelNotFoundError,
    RefusedPersonError,
    WeightsError,
)
from idgen.identity import Identity
from idgen.pipeline import Defaults, IDPipeline, IDPipelineXL, open_pipeline

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
Person = Callable[..., Identity]


@pytest.fixture
def adapter_path(tiny_sd: dict[str, Any], random_adapter: Callable[..., Any], tmp_path: Path) -> Path:
    card = AdapterCard(base_model="tiny", encoder="tiny@0123456789ab", num_tokens=4, licence="none")
    path = tmp_path / "who.safetensors"
    write_adapter(path, random_adapter(tiny_sd["unet"], lora_rank=2), card)
    return path


@pytest.fixture
def pipe(tiny_sd: dict[str, Any], adapter_path: Path) -> IDPipeline:
    pipe = IDPipeline(**tiny_sd, **NO_CHECKER)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_adapter(adapter_path)
    return pipe


def latents(pipe: IDPipeline, prompt: str | list[str] | None = "a face", **settings: Any) -> Tensor:
    settings = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 16, "width": 16, **settings}
    return pipe(prompt, output_type="latent", **settings).images


def differ(a: Tensor, b: Tensor) -> float:
    """The smallest difference of a row."""
    return (a - b).abs().amax((1, 2, 3)).min().item()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# contracts 4 and 6: a row is a person, and the same alone -------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_each_row_equals_the_same_picture_made_alone(
    pipe: IDPipeline, person: Person, guidance_scale: float
) -> None:
    prompts, seeds, scales = ["a face", "old man", "a smile"], [5, 9, 5], [1.0, 0.4, 0.8]
    people = [person(1), [person(2), person(3)], person(4)]
    together = latents(
        pipe, prompts, identity=people, seed=seeds, id_scale=scales, guidance_scale=guidance_scale,
        negative_prompt=["bad", "ugly", "dark"],
    )  # fmt: skip
    for i, negative in enumerate(["bad", "ugly", "dark"]):
        alone = latents(
            pipe, prompts[i], identity=[people[i]], seed=seeds[i], id_scale=scales[i],
            guidance_scale=guidance_scale, negative_prompt=negative,
        )  # fmt: skip
        close(together[i : i + 1], alone)
    order = [2, 0, 1]
    shuffled = latents(
        pipe, [prompts[i] for i in order], identity=[people[i] for i in order],
        seed=[seeds[i] for i in order], id_scale=[scales[i] for i in order], guidance_scale=guidance_scale,
        negative_prompt=[["bad", "ugly", "dark"][i] for i in order],
    )  # fmt: skip
    close(shuffled, together[order])


def test_the_same_call_is_the_same_bits_and_other_people_are_other_pictures(
    pipe: IDPipeline, person: Person
) -> None:
    people = [person(i) for i in range(4)]
    first = latents(pipe, identity=people, seed=[7] * 4)
    assert torch.equal(first, latents(pipe, identity=people, seed=[7] * 4))
    assert differ(first, latents(pipe, identity=people[1:] + people[:1], seed=[7] * 4)) > 0.05
    for i in range(4):  # one prompt and one seed: only the person differs
        assert differ(first[i : i + 1], first[(i + 1) % 4 : (i + 1) % 4 + 1]) > 0.05


def test_rows_expand_as_prompts_do(pipe: IDPipeline, person: Person) -> None:
    people, prompts = [person(1), person(2)], ["a face", "old man"]
    four = latents(
        pipe, prompts, identity=people, num_images_per_prompt=2, seed=[10, 20], id_scale=[1.0, 0.5]
    )
    for i, (row, seed) in enumerate([(0, 10), (0, 11), (1, 20), (1, 21)]):
        close(
            four[i : i + 1],
            latents(pipe, prompts[row], identity=people[row], seed=seed, id_scale=[1.0, 0.5][row]),
        )
    own = latents(
        pipe,
        prompts,
        identity=people,
        num_images_per_prompt=2,
        seed=[10, 11, 20, 21],
        id_scale=[1, 1, 0.5, 0.5],
    )
    assert torch.equal(own, four)


def test_single_values_go_with_every_row(pipe: IDPipeline, person: Person) -> None:
    one, two, prompts = person(1), person(2), ["a face", "old man"]
    everywhere = latents(pipe, prompts, identity=one, seed=3)
    assert torch.equal(
        everywhere, latents(pipe, prompts, identity=[one, one], seed=[3, 4], id_scale=[1.0, 1.0])
    )
    same_prompt = latents(pipe, "a face", identity=[one, two], seed=3, negative_prompt="bad")
    assert torch.equal(
        same_prompt,
        latents(pipe, ["a face"] * 2, identity=[one, two], seed=(3, 4), negative_prompt=["bad"] * 2),
    )


def test_embedded_prompts_take_identities_too(pipe: IDPipeline, person: Person) -> None:
    people, prompts = [person(1), person(2)], ["a face", "old man"]
    positive, negative = pipe.encode_prompt(prompts, "cpu", 1, True, ["", ""])
    got = latents(
        pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative, identity=people, seed=1
    )
    close(got, latents(pipe, prompts, identity=people, seed=1))
    with pytest.raises(ConfigError, match="prompt_embeds has 2 entries and identity has 3"):
        latents(pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative, identity=[person(1)] * 3)


def test_seeds_of_pictures() -> None:
    assert picture_seeds(5, 2, 2) == [5, 6, 7, 8]
    assert picture_seeds([5, 9], 2, 2) == [5, 6, 9, 10]
    assert picture_seeds([5, 9, 1, 0], 2, 2) == [5, 9, 1, 0]
    with pytest.raises(ConfigError, match="seed has 3 entries for 2 rows and 4 pictures"):
        picture_seeds([1, 2, 3], 2, 2)


# contract 5: strength 0 and no adapter are the base model -------------------------------------------------


def test_strength_zero_nobody_and_unloading_are_the_base_model(
    pipe: IDPipeline, tiny_sd: dict[str, Any], person: Person
) -> None:
    stock = StableDiffusionPipeline(**copy.deepcopy(tiny_sd), **NO_CHECKER)
    stock.set_progress_bar_config(disable=True)
    state = copy.deepcopy(pipe.unet.state_dict())
    generators = [torch.Generator().manual_seed(s) for s in (3, 4)]
    base = latents(stock, ["a face"] * 2, generator=generators)
    one = person(1)
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3), base)
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3, identity=one, id_scale=0), base)
    mixed = latents(pipe, ["a face"] * 2, seed=3, identity=one, id_scale=[1, 0])
    assert torch.equal(mixed[1], base[1])
    assert differ(mixed[:1], base[:1]) > 0.05
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3, identity=[one, None]), mixed)
    pipe.unload_adapter()
    assert pipe.adapter is None
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3), base)
    assert all(torch.equal(value, state[key]) for key, value in pipe.unet.state_dict().items())


def test_an_interrupted_call_leaves_the_base_model(pipe: IDPipeline, person: Person) -> None:
    base = latents(pipe, seed=3)

    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents(pipe, seed=3, identity=person(1), callback_on_step_end=stop)
    assert torch.equal(latents(pipe, seed=3), base)


def test_loras_of_the_user_survive_an_adapter(pipe: IDPipeline, person: Person, tmp_path: Path) -> None:
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "mine")
    with_mine = latents(pipe, seed=3)
    assert differ(latents(pipe, seed=3, identity=person(1)), with_mine) > 0.05
    assert torch.equal(latents(pipe, seed=3), with_mine)
    pipe.unload_adapter()
    assert torch.equal(latents(pipe, seed=3), with_mine)
    pipe.unet.disable_adapters()
    assert differ(latents(pipe, seed=3), with_mine) > 1e-3


# strength over steps and layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler])
def test_the_window_is_obeyed_by_every_sampler(pipe: IDPipeline, person: Person, scheduler: Any) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    shown: list[float] = []

    def look(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        shown.append(step / pipeline.num_timesteps)
        history.append(tensors["latents"].clone())
        return tensors

    histories = []
    for settings in ({}, {"identity": person(1), "id_start": 0.5}, {"identity": person(1), "id_end": 0.5}):
        history: list[Tensor] = []
        latents(pipe, seed=3, num_inference_steps=4, callback_on_step_end=look, **settings)
        histories.append(history)
    base, late, early = histories
    for i, history in enumerate(base):
        assert torch.equal(history, late[i]) == (shown[i] < 0.5)
    assert differ(early[0], base[0]) > 1e-3
    whole = latents(pipe, seed=3, num_inference_steps=4, identity=person(1))
    assert differ(early[-1], whole) > 1e-3


def test_layer_groups(pipe: IDPipeline, person: Person) -> None:
    one = person(1)
    base, full = latents(pipe, seed=3, lora_scale=0), latents(pipe, seed=3, identity=one, lora_scale=0)
    off = {"down": 0.0, "mid": 0, "up": 0}
    assert torch.equal(latents(pipe, seed=3, identity=one, lora_scale=0, id_layers=off), base)
    half = latents(pipe, seed=3, identity=one, lora_scale=0, id_layers={**off, "up": 1, "up.0.1": 0.3})
    assert differ(half, base) > 1e-3
    assert differ(half, full) > 1e-3
    with pytest.raises(ConfigError, match=r"this UNet has no 'up\.9'"):
        latents(pipe, seed=3, identity=one, id_layers={"up.9": 1.0})


# what diffusers can do, still works -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (DDIMScheduler, {}),
        (DPMSolverMultistepScheduler, {}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (UniPCMultistepScheduler, {}),
        (EulerDiscreteScheduler, {}),
        (EulerAncestralDiscreteScheduler, {}),
        (LCMScheduler, {}),
    ],
)
def test_samplers_give_each_row_its_own_noise(
    pipe: IDPipeline, person: Person, scheduler: Any, settings: dict[str, Any]
) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **settings)
    people = [person(1), person(2)]
    together = latents(pipe, identity=people, seed=[4, 8])
    assert together.isfinite().all()
    close(together[1:], latents(pipe, identity=people[1], seed=8))


def test_callbacks_output_types_and_the_callers_own_generator(pipe: IDPipeline, person: Person) -> None:
    seen: list[int] = []

    def count(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        return tensors

    settings: dict[str, Any] = {"identity": person(1), "height": 16, "width": 16, "num_inference_steps": 2}
    image = pipe("a face", seed=1, callback_on_step_end=count, **settings).images[0]
    assert seen == [0, 1]
    assert isinstance(image, Image.Image)
    tensor = pipe("a face", generator=torch.Generator().manual_seed(1), output_type="pt", **settings).images
    assert np.array_equal(
        np.asarray(image), (tensor[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    )
    as_tuple = pipe("a face", seed=1, output_type="np", return_dict=False, **settings)
    assert as_tuple[0].shape == (1, 16, 16, 3)


def test_guidance_may_be_cut_off_on_the_way(pipe: IDPipeline, person: Person) -> None:
    def cut(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 0:
            pipeline._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    settings: dict[str, Any] = {
        "callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }  # fmt: skip
    people = [person(1), person(2)]
    together = latents(pipe, identity=people, seed=[4, 8], **settings)
    close(together[1:], latents(pipe, identity=people[1], seed=8, **settings))


def test_the_base_models_safety_checker_is_kept_and_works(
    tiny_sd: dict[str, Any], adapter_path: Path, person: Person, tmp_path: Path
) -> None:
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8,
        patch_size=4, projection_dim=8,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # every picture is nearer than that: all are held back
    processor = CLIPImageProcessor(size=8, crop_size=8)
    IDPipeline(**tiny_sd, safety_checker=checker, feature_extractor=processor).save_pretrained(
        tmp_path / "base"
    )
    pipe = IDPipeline.from_pretrained(tmp_path / "base")
    pipe.set_progress_bar_config(disable=True)
    pipe.load_adapter(adapter_path)
    result = pipe("a face", identity=person(1), seed=1, height=16, width=16, num_inference_steps=2)
    assert isinstance(pipe.safety_checker, StableDiffusionSafetyChecker)
    assert result.nsfw_content_detected == [True]
    assert not np.asarray(result.images[0]).any()


def test_offloaded_components_come_back(
    pipe: IDPipeline, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = latents(pipe, identity=person(1), seed=3)
    pipe.enable_model_cpu_offload(device="cpu")  # the road of an accelerator, with the CPU in its place
    moved: list[str] = []
    assert pipe.adapter is not None
    to = pipe.adapter.adapter.to
    monkeypatch.setattr(pipe.adapter.adapter, "to", lambda *a, **k: (moved.append(str(a[0])), to(*a, **k))[1])
    assert torch.equal(latents(pipe, identity=person(1), seed=3), expected)
    assert moved == ["cpu:0", "cpu"]


def test_half_precision(pipe: IDPipeline, person: Person) -> None:
    full = latents(pipe, identity=[person(1), person(2)], seed=3)
    pipe.to(torch.bfloat16)
    half = latents(pipe, identity=[person(1), person(2)], seed=3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.3, rtol=0)


# saving and opening ---------------------------------------------------------------------------------------


def test_saved_and_opened_again_it_is_the_same(pipe: IDPipeline, person: Person, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    expected = latents(pipe, identity=person(1), seed=3)
    base = latents(pipe, seed=3)
    pipe.save_pretrained(folder)
    again = IDPipeline.from_pretrained(folder, **NO_CHECKER)
    again.set_progress_bar_config(disable=True)
    assert again.adapter is not None
    assert pipe.adapter is not None
    assert (again.adapter.card, again.adapter.sha256) == (pipe.adapter.card, pipe.adapter.sha256)
    assert torch.equal(latents(again, identity=person(1), seed=3), expected)
    plain = StableDiffusionPipeline.from_pretrained(folder, **NO_CHECKER)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(latents(plain, generator=torch.Generator().manual_seed(3)), base)
    assert not any("_ip" in key or "image_proj" in key or "lora" in key for key in plain.unet.state_dict())
    assert type(open_pipeline(folder)) is IDPipeline


def test_a_models_own_defaults_hold_where_a_call_says_nothing(pipe: IDPipeline, tmp_path: Path) -> None:
    assert pipe.defaults == Defaults(num_inference_steps=30, guidance_scale=7.0)
    pipe.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "idgen.json").write_text(
        json.dumps({"num_inference_steps": 2, "guidance_scale": 1.0})
    )
    again = IDPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.defaults == Defaults(num_inference_steps=2, guidance_scale=1.0)
    unsaid = again("a face", seed=1, output_type="latent", height=16, width=16).images
    assert torch.equal(unsaid, latents(again, seed=1, num_inference_steps=2, guidance_scale=1.0))
    (tmp_path / "saved" / "idgen.json").write_text(json.dumps({"steps": 2}))
    with pytest.raises(ConfigError, match="steps is not a setting"):
        IDPipeline.from_pretrained(tmp_path / "saved")


@pytest.mark.skipif(
    not mini.ADAPTER.is_file(), reason="the embedded model is not trained yet in this checkout"
)
def test_the_embedded_model_opens_with_its_adapter() -> None:
    pipe = IDPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.adapter is not None
    vector = np.eye(pipe.adapter.adapter.id_dim, dtype=np.float32)[0]
    someone = Identity.from_vector(vector, pipe.adapter.card.encoder)
    pictures = [
        pipe("a photo of a woman", seed=0, num_inference_steps=2, output_type="pt", **settings).images
        for settings in ({}, {"identity": someone})
    ]
    size_px = pipe.unet.config.sample_size * pipe.vae_scale_factor
    assert pictures[0].shape == (1, 3, size_px, size_px)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


# what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number >= 1, got 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number >= 1, got 2.5"),
        ({"num_images_per_prompt": -1}, "num_images_per_prompt must be a whole number >= 1, got -1"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a finite number >= 0, got nan"),
        ({"lora_scale": -1}, "lora_scale must be a finite number >= 0, got -1"),
        ({"id_scale": -0.5}, r"id_scale\[0\] must be a finite number >= 0 .*, got -0.5"),
        ({"id_scale": [1, math.inf]}, r"id_scale\[1\] must be a finite number >= 0 .*, got inf"),
        ({"id_scale": [1, 1, 1]}, "id_scale has 3 entries for 2 rows and 2 pictures"),
        ({"id_start": 0.7, "id_end": 0.2}, "0 <= id_start < id_end <= 1, got 0.7 and 0.2"),
        ({"seed": -1}, "a seed is a whole number"),
        ({"seed": [1, 2, 3]}, "seed has 3 entries for 2 rows and 2 pictures"),
        ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        ({"negative_prompt": ["a"] * 3}, "prompt has 2 entries and negative_prompt has 3"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": ["a", 3]}, "prompt must be text or a list of texts, got 3"),
        ({"identity": []}, "identity is an empty list"),
        ({"identity": "a.png"}, "got str; make one with Identity.load"),
        ({"height": 12}, "height must be a multiple of 8 pixels, got 12"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_bound(
    pipe: IDPipeline, person: Person, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        latents(pipe, **{"prompt": ["a", "b"], "identity": person(1), **settings})


def test_lists_of_different_lengths_are_refused_with_both_numbers(pipe: IDPipeline, person: Person) -> None:
    with pytest.raises(ConfigError, match="identity has 2 entries and prompt has 3"):
        latents(pipe, ["a", "b", "c"], identity=[person(1), person(2)])


def test_face_vectors_of_another_encoder_are_refused_and_both_named(pipe: IDPipeline, person: Person) -> None:
    with pytest.raises(EncoderMismatchError, match="other@0123456789ab, but tiny@0123456789ab is wanted"):
        latents(pipe, identity=person(1, encoder="other@0123456789ab"))
    with pytest.raises(
        EncoderMismatchError, match=r"width 9, but the adapter who\.safetensors reads width 8"
    ):
        latents(pipe, identity=person(1, dim=9))


def test_somebody_who_refused_is_not_drawn_and_who_cannot_be_compared_neither(
    pipe: IDPipeline, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eye = mini_encoder().id
    ann = Identity.from_vector(np.eye(128)[0], eye)
    listed = Blocklist(path=tmp_path / "refused.safetensors")
    listed.add(ann, "Ann")
    listed.save()
    monkeypatch.setenv(VARIABLE, str(listed.path))
    with pytest.raises(RefusedPersonError, match="this is 'Ann', who refused"):
        latents(pipe, ["a face", "a face"], identity=[None, [ann]])
    with pytest.raises(EncoderMismatchError, match=r"not checked against people who refused: 'Ann'"):
        latents(pipe, identity=person(0))
    for others in (
        Blocklist(),
        Blocklist({"Bob": person(1)}),
    ):  # the caller's own list stands in for the user's
        others._thresholds[person(1).face_vector.encoder] = 0.9
        assert latents(pipe, identity=person(0), blocklist=others).isfinite().all()
    with pytest.raises(RefusedPersonError, match="this is 'Bob'"):
        latents(pipe, identity=person(1), blocklist=others)
    assert latents(pipe).isfinite().all()  # nobody


def test_an_identity_needs_an_adapter(pipe: IDPipeline, person: Person) -> None:
    pipe.unload_adapter()
    with pytest.raises(ConfigError, match=r"no adapter is loaded; load one with pipe\.load_adapter"):
        latents(pipe, identity=person(1))


def test_an_adapter_that_does_not_fit_leaves_the_one_before(
    pipe: IDPipeline, person: Person, random_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    from conftest import tiny_unet

    expected = latents(pipe, identity=person(1), seed=3)
    card = AdapterCard(base_model="tiny", encoder="tiny@0123456789ab", num_tokens=4, licence="none")
    write_adapter(tmp_path / "wide.safetensors", random_adapter(tiny_unet(768)), card)
    with pytest.raises(WeightsError, match=r"Stable Diffusion 1\.x \(text width 768\)"):
        pipe.load_adapter(tmp_path / "wide.safetensors")
    assert torch.equal(latents(pipe, identity=person(1), seed=3), expected)


def test_a_model_that_is_not_here_is_named_with_the_way_to_get_it(
    tmp_path: Path, tiny_sd: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="get it with `hf download nobody/nothing`"):
        IDPipeline.from_pretrained("nobody/nothing")
    with pytest.raises(
        ModelNotFoundError, match="no such model: minni is no folder here; did you mean 'mini'"
    ):
        IDPipeline.from_pretrained("minni")
    with pytest.raises(ModelNotFoundError, match=r"holds no model_index\.json"):
        IDPipeline.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"is a file, a diffusers folder is wanted"):
        IDPipeline.from_pretrained(tmp_path / "model.safetensors")
    folder = tmp_path / "sd"
    IDPipeline(**tiny_sd, **NO_CHECKER).save_pretrained(folder)
    with pytest.raises(ConfigError, match="is a StableDiffusionPipeline; open it with IDPipeline"):
        IDPipelineXL.from_pretrained(folder)
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="holds a damaged file of weights"):
        IDPipeline.from_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelNotFoundError, match=r"sd is incomplete: it has no tokenizer/"):
        IDPipeline.from_pretrained(folder)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="is incomplete"):
        IDPipeline.from_pretrained(
            folder, tokenizer=tiny_sd["tokenizer"], text_encoder=tiny_sd["text_encoder"]
        )
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ConfigError, match="is a FluxPipeline; idgen opens Stable Diffusion 1"):
        open_pipeline(folder)
