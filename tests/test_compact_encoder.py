"""mini's own encoder of W+ codes: shapes, files, and what a file must not say."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from idgen.encoders.wplus import load_wplus
from idgen.errors import ConfigError, WeightsError
from idgen.faces.framing import Framing
from idgen.faces.photo import crop_ffhq
from idgen.stylegan.checkpoint import WPlusCard, write_wplus
from idgen.stylegan.compact import CompactEncoder
from idgen.stylegan.discriminator import Discriminator
from idgen.stylegan.generator import StyleGenerator
from idgen.stylegan.model import WPlusModel

# left and right eye, nose, corners of the mouth of Eileen Collins (NASA), seen by eye
ASTRONAUT = [[206, 112], [243, 113], [228, 136], [208, 151], [241, 152]]
CROP = {"size_px": 16, "template": "portrait", "mean": 127.5, "std": 127.5}


def model() -> WPlusModel:
    torch.manual_seed(0)
    decoder = StyleGenerator(16, 8, {4: 16, 8: 16, 16: 16}, num_mapping_layers=0)
    encoder = CompactEncoder(size_px=16, num_layers=6, style_dim=8, widths=(16, 32), bottleneck=12)
    return WPlusModel(encoder, decoder, torch.randn(6, 8)).eval()


def test_all_codes_come_from_one_vector_of_fixed_length() -> None:
    encoder = model().encoder
    assert isinstance(encoder, CompactEncoder)
    pixel_values = torch.rand(3, 3, 16, 16) * 2 - 1
    vector = encoder.vector(pixel_values).detach()
    assert vector.square().mean(dim=1) == pytest.approx([1, 1, 1], abs=1e-4)
    by_hand = (vector @ encoder.to_codes.weight.T + encoder.to_codes.bias).reshape(3, 6, 8)
    assert torch.allclose(encoder(pixel_values), by_hand)


def test_a_file_gives_the_same_codes_and_pictures(tmp_path: Path) -> None:
    whole = model()
    card = WPlusCard(kind="compact", crop=CROP, licence="mine", settings=whole.encoder.settings)
    write_wplus(tmp_path / "small.safetensors", whole, card)
    encoder = load_wplus(tmp_path / "small.safetensors")
    crops = torch.rand(2, 3, 16, 16)
    assert torch.allclose(encoder.encode(crops), whole.invert(crops * 2 - 1), atol=1e-6)
    assert encoder.decode(encoder.encode(crops)).shape == (2, 3, 16, 16)
    assert (encoder.licence, encoder.crop.template) == ("mine", "portrait")


@pytest.mark.parametrize("settings", [{"widths": [16, 32]}, {"size_px": 32}])
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    whole = model()
    said = settings if "widths" in settings else {**whole.encoder.settings, **settings}
    write_wplus(tmp_path / "x.safetensors", whole, WPlusCard(kind="compact", crop=CROP, settings=said))
    with pytest.raises(WeightsError, match="compact encoder cannot be used"):
        load_wplus(tmp_path / "x.safetensors")


def test_widths_must_lead_to_four_pixels() -> None:
    with pytest.raises(ConfigError, match="widths must name 2 levels"):
        CompactEncoder(size_px=16, num_layers=6, style_dim=8, widths=(16,), bottleneck=12)
    with pytest.raises(ConfigError, match="multiples of 16"):
        CompactEncoder(size_px=16, num_layers=6, style_dim=8, widths=(16, 20), bottleneck=12)


def test_a_discriminator_learns_to_tell_dark_from_light() -> None:
    torch.manual_seed(0)
    judge = Discriminator((16, 16, 16))
    optimizer = torch.optim.Adam(judge.parameters(), 1e-2, betas=(0.0, 0.99))
    dark, light = torch.rand(8, 3, 16, 16) * 0.5 - 1, torch.rand(8, 3, 16, 16) * 0.5 + 0.5
    for _ in range(10):
        loss = torch.nn.functional.softplus(judge(dark)).mean()
        loss = loss + torch.nn.functional.softplus(-judge(light)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bool((judge(light) > judge(dark).max()).all())


def test_a_portrait_is_cut_as_training_pictures_are(tmp_path: Path) -> None:
    whole = model()
    card = WPlusCard(kind="compact", crop=CROP, settings=whole.encoder.settings)
    write_wplus(tmp_path / "small.safetensors", whole, card)
    photo, landmarks = Image.fromarray(skimage.data.astronaut()), np.array(ASTRONAUT, dtype=np.float32)
    crop = load_wplus(tmp_path / "small.safetensors").cut(photo, landmarks)
    framed, _ = Framing(kind="aligned", size_px=16).cut(photo, landmarks)
    assert np.abs(crop.permute(1, 2, 0).numpy() * 255 - np.asarray(framed)).max() <= 1


def test_a_large_face_is_cut_as_ffhq_cuts_it_from_a_smaller_photo() -> None:
    photo, landmarks = Image.fromarray(skimage.data.astronaut()), np.array(ASTRONAUT, dtype=np.float32)
    half = photo.reduce(2), (landmarks - 0.5) / 2
    whole, small = (crop_ffhq(image, points, 32) for image, points in ((photo, landmarks), half))
    assert whole.shape == (3, 32, 32)
    assert (whole - small).abs().mean() < 0.01
