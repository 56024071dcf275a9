"""Pipelines with a W+ adapter, beside a FaceID one or alone: who is where, when, and how strong."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from tiny_wplus_adapter import ENCODER, code, random_wplus, with_code, write_wplus
from torch import Tensor

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import AdapterFile, write_adapter
from idgen.adapters.install import IDAdapter
from idgen.adapters.wplus import WPlusAdapter
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError, WeightsError
from idgen.identity import Feature, Identity
from idgen.pipeline import IDPipeline, IDPipelineXL

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
Person = Callable[..., Identity]
Pipe = IDPipeline | IDPipelineXL


@pytest.fixture(params=["sd", "sdxl"])
def bare(request: pytest.FixtureRequest) -> Pipe:
    """Without any adapter."""
    parts = request.getfixturevalue(f"tiny_{request.param}")
    made = IDPipeline(**parts, **NO_CHECKER) if request.param == "sd" else IDPipelineXL(**parts)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def face_path(bare: Pipe, random_adapter: Callable[..., IDAdapter], tmp_path: Path) -> Path:
    card = AdapterCard(base_model="tiny", encoder="tiny@0123456789ab", num_tokens=4, licence="none")
    write_adapter(tmp_path / "who.safetensors", random_adapter(bare.unet, lora_rank=2), card)
    return tmp_path / "who.safetensors"


@pytest.fixture
def wplus_path(bare: Pipe, tmp_path: Path) -> Path:
    return write_wplus(tmp_path / "wplus.safetensors", bare.unet)


@pytest.fixture
def pipe(bare: Pipe, face_path: Path, wplus_path: Path) -> Pipe:
    """With both."""
    bare.load_adapter(wplus_path)
    bare.load_adapter(face_path)
    return bare


@pytest.fixture
def sd(tiny_sd: dict[str, Any], tmp_path: Path) -> IDPipeline:
    """Stable Diffusion with a W+ adapter alone."""
    made = IDPipeline(**tiny_sd, **NO_CHECKER)
    made.set_progress_bar_config(disable=True)
    made.load_adapter(write_wplus(tmp_path / "wplus.safetensors", made.unet))
    return made


def latents(pipe: Pipe, prompt: str | list[str] = "a face", **settings: Any) -> Tensor:
    settings = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 16, "width": 16, **settings}
    return pipe(prompt, output_type="latent", **settings).images


def differ(a: Tensor, b: Tensor) -> float:
    """The smallest difference of a row."""
    return (a - b).abs().amax((1, 2, 3)).min().item()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@contextmanager
def calls_of(adapter: WPlusAdapter) -> Iterator[list[int]]:
    """How many rows each call of the first layer's branch has."""
    calls: list[int] = []
    to_q = adapter.wplus_adapter["1"].to_q_wplus
    handle = to_q.register_forward_hook(lambda _m, args, _out: calls.append(len(args[0])))
    yield calls
    handle.remove()


# who is where ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"guidance_scale": 1.0}, {}, {"id_guidance_scale": 2.0}])
def test_each_row_has_what_is_known_of_its_person_and_equals_the_picture_made_alone(
    pipe: Pipe, person: Person, settings: dict[str, Any]
) -> None:
    people = [person(1), with_code(2), with_code(3, person(3)), None, with_code(4, person(4))]
    seeds, prompts = [5, 9, 5, 1, 7], ["a face", "old man", "a smile", "a face", "a face"]
    scales = {"id_scale": [1.0, 1.0, 0.5, 1.0, 0.0], "wplus_scale": [1.0, 0.6, 1.0, 1.0, 1.0]}
    together = latents(pipe, prompts, identity=people, seed=seeds, **scales, **settings)
    for i in range(5):
        own = {name: values[i] for name, values in scales.items()}
        alone = latents(pipe, prompts[i], identity=[people[i]], seed=seeds[i], **own, **settings)
        close(together[i : i + 1], alone)
    base = latents(pipe, prompts, seed=seeds, guidance_scale=settings.get("guidance_scale", 4.0))
    if "id_guidance_scale" not in settings:  # t + g (ti - t) is t up to the last bit only
        assert torch.equal(together[3], base[3])
    shown = together[[0, 1, 2, 4]]
    assert differ(shown, base[[0, 1, 2, 4]]) > 1e-2
    only_code = latents(pipe, "a face", identity=[with_code(4)], seed=7, **settings)
    close(together[4:], only_code)


def test_two_adapters_are_more_than_each(pipe: Pipe, person: Person) -> None:
    who = with_code(1, person(1))
    both = latents(pipe, identity=who, seed=3)
    by_face = latents(pipe, identity=who, seed=3, wplus_scale=0)
    by_code = latents(pipe, identity=who, seed=3, id_scale=0)
    assert torch.equal(by_face, latents(pipe, identity=person(1), seed=3))
    assert torch.equal(by_code, latents(pipe, identity=with_code(1), seed=3))
    assert min(differ(both, by_face), differ(both, by_code), differ(by_face, by_code)) > 1e-2
    assert differ(by_code, latents(pipe, identity=with_code(2), seed=3)) > 1e-2


def test_strength_zero_and_unloading_are_the_base_model(pipe: Pipe, person: Person) -> None:
    state = copy.deepcopy(pipe.unet.state_dict())
    base, who = latents(pipe, ["a face"] * 2, seed=3), with_code(1, person(1))
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3, identity=who, id_scale=0, wplus_scale=0), base)
    mixed = latents(pipe, ["a face"] * 2, seed=3, identity=who, id_scale=[1, 0], wplus_scale=[0.5, 0])
    assert torch.equal(mixed[1], base[1])
    assert differ(mixed[:1], base[:1]) > 1e-2
    by_code = latents(pipe, seed=3, identity=with_code(1))
    pipe.unload_adapter()
    assert pipe.adapter is None
    assert pipe.wplus_adapter is not None
    assert torch.equal(latents(pipe, seed=3, identity=who), by_code)
    pipe.unload_wplus_adapter()
    assert pipe.wplus_adapter is None
    assert torch.equal(latents(pipe, ["a face"] * 2, seed=3), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    assert all(torch.equal(value, state[key]) for key, value in pipe.unet.state_dict().items())


def test_codes_of_several_references_are_averaged(pipe: Pipe, person: Person) -> None:
    mean = Feature(ENCODER, "wplus", np.mean([code(1).value, code(2).value], axis=0))
    several = [with_code(1), person(3), with_code(2)]
    expected = latents(pipe, identity=Identity((mean, *person(3).features)), seed=3)
    assert torch.equal(latents(pipe, identity=[several], seed=3), expected)
    assert differ(latents(pipe, identity=[several[:2]], seed=3), expected) > 1e-3


# when, and how strong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "first", "last"),
    [({}, 2, 9), ({"wplus_start": 0.0}, 0, 9), ({"wplus_start": 0.5, "wplus_end": 0.8}, 5, 7)],
)
def test_the_window_of_the_steps(sd: IDPipeline, settings: dict[str, float], first: int, last: int) -> None:
    assert sd.wplus_adapter is not None
    base, made = [], []
    for history, more in ((base, {}), (made, {"identity": with_code(1), **settings})):

        def look(
            _pipe: Any, _step: int, _t: Any, tensors: dict[str, Tensor], seen: list[Tensor] = history
        ) -> Any:
            seen.append(tensors["latents"].clone())
            return tensors

        with calls_of(sd.wplus_adapter.adapter) as calls:
            latents(sd, seed=3, num_inference_steps=10, callback_on_step_end=look, **more)
    assert calls == [2] * (last - first + 1)  # both rows of guidance
    assert [torch.equal(a, b) for a, b in zip(base, made, strict=True)] == [i < first for i in range(10)]


def test_layer_groups(sd: IDPipeline) -> None:
    base, who = latents(sd, seed=3), with_code(1)
    off = {"down": 0.0, "mid": 0.0, "up": 0.0}
    assert torch.equal(latents(sd, seed=3, identity=who, wplus_layers=off), base)
    some = latents(sd, seed=3, identity=who, wplus_layers={**off, "up.0.1": 0.7})
    assert differ(some, base) > 1e-4
    assert differ(some, latents(sd, seed=3, identity=who)) > 1e-3


def test_an_identity_guided_apart_is_the_formula(
    sd: IDPipeline, person: Person, random_adapter: Callable[..., IDAdapter], tmp_path: Path
) -> None:
    """One step from pure noise: u + g_t (t - u) + g_i (ti - t), with neither identity in u and t."""
    assert sd.wplus_adapter is not None
    face = random_adapter(sd.unet)
    card = AdapterCard(base_model="tiny", encoder="tiny@0123456789ab", num_tokens=4, licence="none")
    sd.load_adapter(AdapterFile(tmp_path / "who.safetensors", face, card, "0" * 64, torch.float32))
    wplus = sd.wplus_adapter.adapter
    who, noise = with_code(1, person(1)), torch.randn(1, 4, 8, 8)
    made = latents(
        sd, identity=who, latents=noise, id_guidance_scale=2.0, num_inference_steps=1, wplus_start=0.0
    )  # fmt: skip
    sd.scheduler.set_timesteps(1)
    (t,) = sd.scheduler.timesteps
    text, empty = (sd.encode_prompt(p, "cpu", 1, False)[0] for p in ("a face", ""))
    vector = torch.from_numpy(who.face_vector.value.copy())[None]
    own_code = torch.from_numpy(who.feature("wplus").value.copy())[None]

    def ask(hidden: Tensor, share: float) -> Tensor:
        face.condition(share * vector)
        wplus.condition(share * own_code)
        with torch.no_grad():
            return sd.unet(noise, t, encoder_hidden_states=hidden).sample

    u, only_text, both = ask(empty, 0), ask(text, 0), ask(text, 1)
    guided = u + 4.0 * (only_text - u) + 2.0 * (both - only_text)
    close(made, sd.scheduler.step(guided, t, noise).prev_sample)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wplus_scale": -0.5}, r"wplus_scale\[0\] must be a finite number >= 0 .*, got -0.5"),
        ({"wplus_scale": [1, 1, 1]}, "wplus_scale has 3 entries for 2 rows and 2 pictures"),
        ({"wplus_start": 0.7, "wplus_end": 0.2}, "0 <= wplus_start < wplus_end <= 1, got 0.7 and 0.2"),
        ({"wplus_layers": {"up": -1}}, r"wplus_layers\['up'\] must be a finite number >= 0"),
        ({"wplus_layers": {"up.9": 1.0}}, r"wplus_layers: this UNet has no 'up\.9'"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(sd: IDPipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latents(sd, ["a", "b"], identity=with_code(1), **settings)


# which features are read -----------------------------------------------------------------------------------


def test_codes_that_the_adapter_cannot_read_are_refused(sd: IDPipeline) -> None:
    other = Identity((code(1, encoder="psp@0123456789ab"),))
    with pytest.raises(EncoderMismatchError, match=f"made by psp@0123456789ab, but {ENCODER} is wanted"):
        latents(sd, identity=other)
    short = Identity((code(1, num_layers=5),))
    with pytest.raises(
        EncoderMismatchError, match=r"W\+ codes of \(5, 8\), but .* wplus\.safetensors reads \(6, 8\)"
    ):
        latents(sd, identity=short)


def test_somebody_whom_no_adapter_reads_is_refused(sd: IDPipeline, person: Person, tmp_path: Path) -> None:
    with pytest.raises(IdentityError) as error:
        latents(sd, identity=[with_code(1), person(2)])
    assert str(error.value) == (
        "identity[1] has nothing that the loaded adapters read: it has face_vector of tiny@0123456789ab; "
        f"they read wplus of {ENCODER} (wplus.safetensors)"
    )
    with pytest.raises(IdentityError, match="the identity has nothing that the loaded adapters read"):
        latents(sd, identity=[[with_code(1), person(2)]])  # a reference that would be passed over
    sd.unload_wplus_adapter()
    with pytest.raises(ConfigError, match="no adapter is loaded"):
        latents(sd, identity=with_code(1))


# loading, saving, devices ----------------------------------------------------------------------------------


def test_each_kind_has_its_own_place(bare: Pipe, face_path: Path, wplus_path: Path, person: Person) -> None:
    who = with_code(1, person(1))
    file = bare.load_adapter(wplus_path)
    assert (bare.adapter, bare.wplus_adapter) == (None, file)
    bare.load_adapter(face_path)
    expected = latents(bare, identity=who, seed=3)
    bare.unload_adapter()
    bare.unload_wplus_adapter()
    face = bare.load_adapter(face_path)
    bare.load_adapter(wplus_path)  # in the other order
    assert bare.adapter is face
    assert torch.equal(latents(bare, identity=who, seed=3), expected)
    other = write_wplus(wplus_path.with_name("other.safetensors"), bare.unet, seed=1)
    bare.load_adapter(other)  # in place of the one of its kind
    assert bare.adapter is face
    assert differ(latents(bare, identity=who, seed=3), expected) > 1e-3
    with pytest.raises(WeightsError, match=r"the adapter does not fit this UNet"):
        bare.load_adapter(write_wplus(wplus_path.with_name("wide.safetensors"), tiny_unet(768)))
    assert bare.wplus_adapter is not None
    assert bare.wplus_adapter.path == other


def test_a_published_pickle_goes_onto_a_model(tiny_sd: dict[str, Any], tmp_path: Path) -> None:
    pipe = IDPipeline(**tiny_sd, **NO_CHECKER)
    pipe.set_progress_bar_config(disable=True)
    state = random_wplus(pipe.unet, num_layers=18, style_dim=512).state_dict()
    nested = {
        group: {key.removeprefix(f"{group}."): value for key, value in state.items() if key.startswith(group)}
        for group in ("w_proj", "wplus_adapter")
    }
    torch.save(nested, tmp_path / "wplus_adapter.bin")
    pipe.load_adapter(tmp_path / "wplus_adapter.bin", encoder="e4e")
    value = np.random.default_rng(0).normal(size=(18, 512))
    who = Identity((Feature("e4e@0123456789ab", "wplus", value),))
    assert differ(latents(pipe, identity=who, seed=3), latents(pipe, seed=3)) > 1e-3


def test_saved_and_opened_again_it_is_the_same(pipe: Pipe, person: Person, tmp_path: Path) -> None:
    who = with_code(1, person(1))
    expected, base = latents(pipe, identity=who, seed=3), latents(pipe, seed=3)
    pipe.save_pretrained(tmp_path / "saved")
    extra = NO_CHECKER if isinstance(pipe, IDPipeline) else {}
    again = type(pipe).from_pretrained(tmp_path / "saved", **extra)
    again.set_progress_bar_config(disable=True)
    for before, after in ((pipe.adapter, again.adapter), (pipe.wplus_adapter, again.wplus_adapter)):
        assert before is not None
        assert after is not None
        assert (before.card, before.sha256) == (after.card, after.sha256)
    assert torch.equal(latents(again, identity=who, seed=3), expected)
    stock = StableDiffusionPipeline if isinstance(pipe, IDPipeline) else StableDiffusionXLPipeline
    plain = stock.from_pretrained(tmp_path / "saved", **extra)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(latents(plain, generator=torch.Generator().manual_seed(3)), base)
    pipe.unload_adapter()
    pipe.save_pretrained(tmp_path / "codes")
    alone = type(pipe).from_pretrained(tmp_path / "codes", **extra)
    assert alone.adapter is None
    assert alone.wplus_adapter is not None


def test_both_adapters_are_offloaded(pipe: Pipe, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    who = with_code(1, person(1))
    expected = latents(pipe, identity=who, seed=3)
    pipe.enable_model_cpu_offload(device="cpu")  # the road of an accelerator, with the CPU in its place
    moved: list[tuple[str, str]] = []
    for file in (pipe.adapter, pipe.wplus_adapter):
        assert file is not None
        kind, to = file.adapter.feature_kind, file.adapter.to
        monkeypatch.setattr(
            file.adapter, "to", lambda *a, k=kind, to=to: (moved.append((k, str(a[0]))), to(*a))[1]
        )
    assert torch.equal(latents(pipe, identity=who, seed=3), expected)
    assert moved == [(k, place) for place in ("cpu:0", "cpu") for k in ("face_vector", "wplus")]


def test_half_precision(sd: IDPipeline) -> None:
    who = [with_code(1), with_code(2)]
    full = latents(sd, identity=who, seed=3)
    sd.to(torch.bfloat16)
    half = latents(sd, identity=who, seed=3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.3, rtol=0)
