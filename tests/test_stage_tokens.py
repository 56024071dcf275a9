"""Identity tokens per stage: which row sees which, where they begin, their file, and pictures with them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_unet
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import write_adapter
from idgen.adapters.install import IDAdapter
from idgen.adapters.stages import (
    STAGE_TOKENS_NAME,
    StageTokens,
    read_stage_tokens,
    staged,
    write_stage_tokens,
)
from idgen.errors import ConfigError, ModelNotFoundError, WeightsError
from idgen.identity import Identity
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.tuning.stages import StagedUnet, StageSettings, start_tokens, word_states

Pipe = IDPipeline | IDPipelineXL
S, N, L, T = 4, 3, 16, 1000
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def random_tokens(width: int = 16, *, stages: int = S, seed: int = 0) -> StageTokens:
    generator = torch.Generator().manual_seed(seed)
    return StageTokens(torch.randn(stages, N, width, generator=generator), T)


@pytest.fixture
def sd(tiny_sd: dict[str, Any]) -> IDPipeline:
    return quiet(IDPipeline(**tiny_sd, **NO_CHECKER))


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Pipe:
    """Tiny Stable Diffusion 1.x and SDXL."""
    if request.param == "sd":
        return request.getfixturevalue("sd")
    return quiet(IDPipelineXL(**request.getfixturevalue("tiny_sdxl")))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_width(pipe: Pipe) -> int:
    return pipe.unet.config["cross_attention_dim"]


@torch.no_grad()
def encoded(pipe: Pipe, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """The text states of prompts, and those of none."""
    return pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )[:2]  # pyright: ignore


def load_tokens(pipe: Pipe, folder: Path, **settings: int) -> StageTokens:
    write_stage_tokens(folder / STAGE_TOKENS_NAME, random_tokens(text_width(pipe), **settings))
    return pipe.load_stage_tokens(folder)


def latents(pipe: Pipe, prompt: str | list[str] = "a face", **settings: Any) -> Tensor:
    common = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 16, "width": 16, "seed": 3}
    return pipe(prompt, output_type="latent", **{**common, **settings}).images


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# which row sees which -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 3, 5, 7])
def test_stages_are_equal_parts_of_the_timesteps(stages: int) -> None:
    tokens = random_tokens(2, stages=stages)
    expected = [math.floor(t * stages / T) for t in range(T)]
    assert tokens.stage(torch.arange(T)).tolist() == expected
    assert tokens.stage(torch.arange(T) + 0.5).tolist() == [
        math.floor((t + 0.5) * stages / T) for t in range(T)
    ]
    counts = torch.tensor(expected).bincount()
    assert len(counts) == stages
    assert counts.max() - counts.min() <= 1
    assert tokens.stage(torch.tensor([T, T + 0.0])).tolist() == [stages - 1] * 2


def test_each_row_gets_the_tokens_of_its_timestep() -> None:
    tokens, hidden = random_tokens(), torch.randn(3, 5, 16)
    found = tokens(hidden, torch.tensor([0, 999, 250]))
    assert found.shape == (3, 5 + N, 16)
    assert torch.equal(found[:, :5], hidden)
    assert torch.equal(found[:, 5:], tokens.tokens[[0, 3, 1]])
    assert torch.equal(tokens(hidden, torch.tensor(600))[:, 5:], tokens.tokens[[2, 2, 2]])
    assert tokens(hidden.half(), torch.tensor(1)).dtype == torch.float16
    assert tokens.mask(hidden, torch.tensor([True, False, True]))[1].tolist() == [1] * 5 + [0] * N


def test_a_masked_row_equals_the_unet_without_tokens() -> None:
    unet = tiny_unet(16)
    model = StagedUnet(unet, random_tokens()).eval()
    noisy, text, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 16), torch.tensor([10, 500, 900])
    with torch.no_grad():
        plain = unet(noisy, timesteps, encoder_hidden_states=text).sample
        has_tokens = torch.tensor([True, False, True])
        found = model(noisy, timesteps, encoder_hidden_states=text, has_tokens=has_tokens).sample
        everywhere = model(noisy, timesteps, encoder_hidden_states=text, return_dict=False)[0]
    torch.testing.assert_close(found[1], plain[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[[0, 2]], everywhere[[0, 2]], atol=1e-6, rtol=1e-5)
    assert (everywhere - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_only_the_tokens_of_rows_that_have_them_train() -> None:
    model = StagedUnet(tiny_unet(16), random_tokens())
    assert list(model.trained()) == ["stage_tokens"]
    assert not any(weight.requires_grad for weight in model.unet.parameters())
    answer = model(
        torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 900]), torch.randn(3, 5, 16),
        has_tokens=torch.tensor([True, False, True]),
    ).sample  # fmt: skip
    answer.square().sum().backward()
    gradient = model.tokens.tokens.grad
    assert gradient is not None
    assert [bool(g.any()) for g in gradient] == [True, False, False, True]


# where they begin -----------------------------------------------------------------------------------------


def test_tokens_begin_with_what_the_text_says_of_the_words(pipe: Pipe) -> None:
    prompt = "a big face"
    said = encoded(pipe, [prompt])[0][0]
    # <start> a</w> b i g</w> f a c e</w> <end>
    assert torch.equal(word_states(pipe, prompt, "face"), said[5:9])
    assert torch.equal(word_states(pipe, prompt, "big face"), said[2:9])
    few = start_tokens(pipe, prompt, StageSettings(stages=2, tokens=3, words="face", noise=0.0), seed=0)
    assert torch.equal(few.tokens, said[6:9].expand(2, 3, -1))
    many = start_tokens(pipe, prompt, StageSettings(stages=2, tokens=6, words="face", noise=0.0), seed=0)
    assert torch.equal(many.tokens[1], said[[5, 6, 7, 8, 5, 6]])
    assert many.num_timesteps == T


def test_the_noise_is_small_and_decided_by_the_seed(sd: IDPipeline) -> None:
    for name, weight in sd.text_encoder.named_parameters():
        if name.endswith("final_layer_norm.weight"):
            weight.data *= 7  # else the numbers of a text state have a mean square of 1
    settings = StageSettings(stages=40, tokens=4, words="face")
    one, same, other = (start_tokens(sd, "a face", settings, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    states = word_states(sd, "a face", "face")
    share = (one - states).detach().std() / states.square().mean().sqrt()
    assert share.item() == pytest.approx(0.01, rel=0.1)


def test_words_that_are_not_there_are_refused(sd: IDPipeline) -> None:
    with pytest.raises(
        ConfigError, match="'sks person' are not in the first 16 tokens of the prompt 'a face'"
    ):
        start_tokens(sd, "a face", StageSettings(), seed=0)
    long = "a photo of a person with a face"
    with pytest.raises(ConfigError, match="'face' are not in"):
        word_states(sd, long, "face")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StageSettings(stages=0), "must be at least 1, got 0 and 2"),
        (lambda: StageSettings(words=" "), "words must be part of the prompt"),
        (lambda: StageSettings(noise=-1), "noise must not be negative, got -1"),
        (lambda: StageTokens(torch.randn(3, 4), T), r"tokens must be \(stages, tokens, text width\), got"),
        (lambda: StageTokens(torch.randn(3, 1, 4), 2), "at most the 2 timesteps of the model, got 3"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


# the file -------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tokens, path = random_tokens(), tmp_path / STAGE_TOKENS_NAME
    sha256 = write_stage_tokens(path, tokens)
    for found in (read_stage_tokens(path), read_stage_tokens(str(tmp_path))):
        assert torch.equal(found.tokens, tokens.tokens)
        assert found.num_timesteps == T
        assert not found.tokens.requires_grad
    again = {write_stage_tokens(tmp_path / f"{i}.safetensors", random_tokens()) for i in range(4)}
    assert again == {sha256}  # equal tokens, equal files


def test_files_that_are_no_stage_tokens_are_refused(
    tmp_path: Path, random_adapter: Callable[..., IDAdapter]
) -> None:
    path = tmp_path / STAGE_TOKENS_NAME
    with pytest.raises(ModelNotFoundError, match="no such file of stage tokens"):
        read_stage_tokens(path)
    with pytest.raises(WeightsError, match=r"written as \.safetensors, got a\.bin"):
        write_stage_tokens(tmp_path / "a.bin", random_tokens())
    write_stage_tokens(path, random_tokens())
    data = path.read_bytes()
    for damaged in (data[:-5], b"nothing", data[:4]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="is damaged"):
            read_stage_tokens(path)
    card = AdapterCard(base_model="tiny", encoder="e@0123456789ab", num_tokens=4, licence="none")
    write_adapter(tmp_path / "a.safetensors", random_adapter(tiny_unet(16)), card)
    with pytest.raises(WeightsError, match=r"holds no stage tokens; an adapter .* load_adapter"):
        read_stage_tokens(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"idgen_stage_tokens": "2"}, "of format '2', this idgen reads '1'; update idgen"),
        ({"stages": "five"}, "does not say its stages"),
        ({"stages": "5"}, r"says 5 stages of 3 tokens, but holds \(4, 3, 16\)"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    said = {"idgen_stage_tokens": "1", "stages": "4", "tokens": "3", "num_timesteps": "1000"}
    save_file({"tokens": random_tokens().tokens.data}, tmp_path / STAGE_TOKENS_NAME, {**said, **changes})
    with pytest.raises(WeightsError, match=words):
        read_stage_tokens(tmp_path)
    with_hole = random_tokens()
    with_hole.tokens.data[0, 0, 0] = torch.nan
    write_stage_tokens(tmp_path / STAGE_TOKENS_NAME, with_hole)
    with pytest.raises(WeightsError, match="not finite"):
        read_stage_tokens(tmp_path)


def test_tokens_of_another_model_are_refused_and_those_before_stay(sd: IDPipeline, tmp_path: Path) -> None:
    load_tokens(sd, tmp_path)
    before = latents(sd)
    write_stage_tokens(tmp_path / "wide.safetensors", random_tokens(768))
    with pytest.raises(WeightsError, match=r"width 768 \(Stable Diffusion 1.x\), the text of this model 16"):
        sd.load_stage_tokens(tmp_path / "wide.safetensors")
    short = StageTokens(torch.randn(2, 1, 16), 100)
    write_stage_tokens(tmp_path / "short.safetensors", short)
    with pytest.raises(WeightsError, match="learned over 100 timesteps, this model has 1000"):
        sd.load_stage_tokens(tmp_path / "short.safetensors")
    assert torch.equal(latents(sd), before)
    with pytest.raises(WeightsError, match="have width 16"):
        random_tokens()(torch.randn(1, 2, 8), torch.tensor(1))


# pictures -------------------------------------------------------------------------------------------------


@contextmanager
def calls_of(unet: UNet2DConditionModel) -> Iterator[list[tuple[dict[str, Any], Tensor]]]:
    """What the UNet itself is given and what it answers, behind all hooks."""
    calls, own = [], unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        answer = own(*args, **kwargs)
        calls.append((kwargs, answer[0]))
        return answer

    unet.forward = forward
    yield calls
    del unet.forward


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_unet_answers_as_if_asked_by_hand(pipe: Pipe, tmp_path: Path, guidance_scale: float) -> None:
    tokens = load_tokens(pipe, tmp_path)
    prompts = ["a face", "old man"]
    with calls_of(pipe.unet) as calls:
        latents(pipe, prompts, guidance_scale=guidance_scale, num_inference_steps=5)
    positive, negative = encoded(pipe, prompts)
    stages = []
    for given, answer in calls:
        t, rows = given["timestep"], len(given["sample"])
        added = given.get("added_cond_kwargs") or {}
        stages.append(math.floor(int(t) * S / T))
        own = torch.cat([positive, tokens.tokens[stages[-1]].expand(2, -1, -1)], dim=1)
        expected = []
        for part, hidden in ((slice(0, rows - 2), negative), (slice(rows - 2, rows), own)):
            if part.stop:
                told = {name: value[part] for name, value in added.items()}
                with torch.no_grad():
                    expected.append(pipe.unet(given["sample"][part], t, hidden, added_cond_kwargs=told)[0])
        close(answer, torch.cat(expected))
        assert rows == (2 if guidance_scale == 1 else 4)
    assert stages == [3, 2, 1, 0, 0]  # timesteps 801, 601, 401, 201, 1


def test_a_picture_depends_on_the_stages_it_goes_through(pipe: Pipe, tmp_path: Path) -> None:
    load_tokens(pipe, tmp_path)  # steps at 501 and 1, hence stages 2 and 0
    before = latents(pipe)
    tokens = random_tokens(text_width(pipe))  # with gradients, as in a training
    assert pipe.load_stage_tokens(tokens) is tokens
    assert torch.equal(latents(pipe), before)
    for stage, is_seen in enumerate([True, False, True, False]):
        kept = tokens.tokens.data.clone()
        tokens.tokens.data[stage] *= -1
        assert torch.equal(latents(pipe), before) != is_seen
        tokens.tokens.data = kept


def test_unloading_gives_the_pictures_back_bit_for_bit(pipe: Pipe, tmp_path: Path) -> None:
    before = latents(pipe)
    tokens = load_tokens(pipe, tmp_path)
    assert (latents(pipe) - before).abs().max() > 1e-3

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        latents(pipe, callback_on_step_end=stop)
    assert not pipe.unet._forward_pre_hooks
    pipe.unload_stage_tokens()
    assert torch.equal(latents(pipe), before)
    assert tokens.num_stages == S


@pytest.mark.parametrize("settings", [{}, {"id_guidance_scale": 6.0}, {"guidance_scale": 1.0}])
def test_rows_with_an_adapter_and_tokens_are_the_same_alone(
    sd: IDPipeline, person: Callable[..., Identity], random_adapter: Callable[..., IDAdapter],
    tmp_path: Path, settings: dict[str, float],
) -> None:  # fmt: skip
    card = AdapterCard(base_model="tiny", encoder="tiny@0123456789ab", num_tokens=4, licence="none")
    write_adapter(tmp_path / "who.safetensors", random_adapter(sd.unet, lora_rank=2), card)
    sd.load_adapter(tmp_path / "who.safetensors")
    two = {"identity": [person(0), person(1)], "seed": [5, 9], **settings}
    base = latents(sd, ["a face", "old man"], **two)
    load_tokens(sd, tmp_path)
    both = latents(sd, ["a face", "old man"], **two)
    assert (both - base).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    alone = latents(sd, "old man", identity=person(1), seed=8, num_images_per_prompt=2, **settings)
    close(both[1:], alone[1:])
    sd.unload_stage_tokens()
    assert torch.equal(base, latents(sd, ["a face", "old man"], **two))


def test_fractional_timesteps_of_other_samplers(sd: IDPipeline, tmp_path: Path) -> None:
    sd.scheduler = EulerDiscreteScheduler.from_config(sd.scheduler.config)
    tokens = load_tokens(sd, tmp_path)
    with calls_of(sd.unet) as calls:
        latents(sd, num_inference_steps=3)
    for given, _ in calls:
        stage = math.floor(float(given["timestep"]) * S / T)
        assert torch.equal(given["encoder_hidden_states"][:, L:], tokens.tokens[stage].expand(2, -1, -1))
    assert any(float(given["timestep"]) % 1 for given, _ in calls)


def test_other_numbers_of_rows_are_refused() -> None:
    unet = tiny_unet(16)
    with staged(unet, random_tokens(), 2), pytest.raises(ConfigError, match="with 3 rows for 2 pictures"):
        unet(torch.randn(3, 4, 8, 8), 5, encoder_hidden_states=torch.randn(3, 5, 16))
    assert not unet._forward_pre_hooks
