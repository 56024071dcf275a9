"""W+ codes in closed form: against plain numpy, through a file, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from face_tables import portrait, write_table
from safetensors.torch import load_file, save_file

from idgen.cli import main
from idgen.encoders.wplus import WPlusEncoder, load_wplus
from idgen.errors import ConfigError, EncoderMismatchError, WeightsError
from idgen.stylegan.checkpoint import read_generator
from idgen.stylegan.principal import fit_components, open_vae, principal_pair


@pytest.fixture(scope="module")
def mini_codes() -> WPlusEncoder:
    return load_wplus("mini")


def as_crop(pixels: np.ndarray, side: int = 64) -> torch.Tensor:
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(image, size=(side, side), mode="area")


def test_components_are_those_of_numpy() -> None:
    latents = torch.randn(40, 6) @ torch.randn(6, 6) + 3
    mean, axes, spread = fit_components(latents, 4)
    x = latents.double().numpy()
    covariance = np.cov(x, rowvar=False)
    values = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(spread.square(), values[:4], rtol=1e-3)
    for column in range(4):
        axis = axes[:, column].double().numpy()
        np.testing.assert_allclose(covariance @ axis, values[column] * axis, atol=1e-3 * values[0])


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_all_components_give_everything_back(whitening: float) -> None:
    latents = torch.randn(200, 2, 4, 4) * torch.tensor([1.0, 5.0])[:, None, None] + 1
    encoder, generator = principal_pair(latents, num_layers=4, style_dim=8, whitening=whitening)
    codes = encoder(latents)
    assert codes.shape == (200, 4, 8)
    covariance = torch.cov(codes.flatten(1).T)
    assert float(covariance.trace()) == pytest.approx(32, rel=1e-3)
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=2e-3, rtol=0)
    if whitening == 1:
        torch.testing.assert_close(covariance, torch.eye(32), atol=2e-3, rtol=0)
    else:
        assert float(covariance[0, 0]) > 1.2 * float(covariance[31, 31])
    torch.testing.assert_close(generator(codes), latents, atol=1e-3, rtol=0)


def test_fewer_components_keep_the_strongest() -> None:
    """What is lost is the variance of the components that are left out, no more."""
    latents = torch.randn(300, 1, 4, 4) * torch.linspace(3, 0.1, 16).view(1, 4, 4)
    encoder, generator = principal_pair(latents, num_layers=2, style_dim=4)
    lost = (generator(encoder(latents)) - latents).square().sum(dim=(1, 2, 3)).mean()
    flat = latents.flatten(1)
    variances = torch.linalg.eigvalsh(torch.cov(flat.T))
    assert float(lost) == pytest.approx(float(variances[:8].sum()) * 299 / 300, rel=1e-3)


@pytest.mark.parametrize("num", [40, 16])
def test_more_components_than_there_are_pictures_or_numbers_are_refused(num: int) -> None:
    with pytest.raises(ConfigError, match=f"{num} components need more pictures"):
        fit_components(torch.randn(16, 20) if num == 16 else torch.randn(100, 20), num)


def test_pictures_that_hardly_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="differ in fewer than 5 ways"):
        fit_components(torch.zeros(20, 8), 5)


def test_mini_shows_the_person_again(mini_codes: WPlusEncoder) -> None:
    """A face that no part of it was trained on; mini's own file, read as a user does."""
    from idgen.data.images import arcface_crops
    from idgen.encoders.arcface import load_encoder

    crop = as_crop(portrait())
    shown = mini_codes.decode(mini_codes.encode(crop))
    assert shown.shape == crop.shape
    judge = load_encoder("judge")
    seen = judge.encode(arcface_crops(torch.cat([crop, shown]), 112)).unit
    assert float(seen[0] @ seen[1]) > 0.5


def test_gradients_reach_the_pixels_and_the_codes(mini_codes: WPlusEncoder) -> None:
    crop = as_crop(portrait()).requires_grad_()
    codes = mini_codes.invert(crop)
    mini_codes.decode(codes).mean().backward()
    assert crop.grad is not None
    assert crop.grad.abs().sum() > 0
    assert all(p.grad is None for p in mini_codes.model.parameters())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program leaves, of variations of one free portrait."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("codes")
    images = [
        (np.roll(portrait(), i - 15, axis=1) * rng.uniform(0.5, 1, 3)).astype(np.uint8) for i in range(30)
    ]
    faces = write_table(folder / "faces.parquet", images, [f"P{i % 10}" for i in range(30)])
    settings = ["num_layers=4", "style_dim=5", f"faces={faces}"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "wplus_latents", "--out", str(folder / "run"), *words]) == 0
    return folder / "run"


def test_the_program_keeps_what_varies_in_people_set_aside(made: Path) -> None:
    (line,) = (made / "wplus.jsonl").read_text().splitlines()
    assert json.loads(line)["variance_kept"] > 0.8
    encoder = load_wplus(made / "wplus.safetensors")
    assert (encoder.num_layers, encoder.style_dim, encoder.crop.size_px) == (4, 5, 64)
    dark, light = encoder.decode(encoder.encode(torch.cat([0.6 * as_crop(portrait()), as_crop(portrait())])))
    assert float(light.mean()) > float(dark.mean()) + 0.05


def test_a_second_run_gives_the_same_file_from_what_was_kept(made: Path) -> None:
    path = made / "wplus.safetensors"
    before = path.read_bytes()
    path.unlink()
    faces = made.parent / "faces.parquet"
    settings = ["num_layers=4", "style_dim=5", f"faces={faces}"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "wplus_latents", "--out", str(made), *words]) == 0
    assert path.read_bytes() == before


def test_a_code_of_another_generator_is_refused(made: Path, mini_codes: WPlusEncoder) -> None:
    other = load_wplus(made / "wplus.safetensors")
    feature = other.feature(torch.zeros(4, 5))
    with pytest.raises(
        EncoderMismatchError, match=r"wplus_mini@.* shows its own W\+ codes, got a wplus of wplus@"
    ):
        mini_codes.decode(feature)


def rewritten(source: Path, target: Path, **changed: str) -> Path:
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        metadata = {**file.metadata(), **changed}
    save_file(load_file(source), target, metadata)
    return target


def test_another_autoencoder_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match="describe latents of the autoencoder 000000000000, that of mini is"
    ):
        open_vae("mini", sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        open_vae(str(tmp_path))


def test_settings_that_do_not_fit_are_refused(made: Path, tmp_path: Path) -> None:
    path = rewritten(made / "wplus.safetensors", tmp_path / "a.safetensors", settings="{}")
    with pytest.raises(WeightsError, match="settings of the principal components cannot be used: KeyError"):
        load_wplus(path)
    settings = {"num_layers": 3, "style_dim": 5, "latent_shape": [8, 16, 16], "model": "mini"}
    path = rewritten(made / "wplus.safetensors", tmp_path / "b.safetensors", settings=json.dumps(settings))
    with pytest.raises(WeightsError, match=r"encoder.axes is \(20, 2048\), its neighbours need \(15, 2048\)"):
        load_wplus(path)


def test_a_truncated_file_is_refused(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((made / "wplus.safetensors").read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        load_wplus(path)


def test_its_generator_alone_is_refused(made: Path) -> None:
    with pytest.raises(WeightsError, match="its generator makes latents of a diffusion model"):
        read_generator(made / "wplus.safetensors")
