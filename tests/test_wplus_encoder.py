"""The encoder of W+ codes: crops in, codes out, pictures of codes, and codes of another generator."""

from pathlib import Path

import pytest
import torch
from tiny_wplus import STYLE_DIM, save_published, tiny_generator, tiny_model
from torch import nn

from idgen.encoders.base import UNKNOWN_LICENCE, CropSpec
from idgen.encoders.wplus import MAX_BATCH, WPlusEncoder, load_wplus
from idgen.errors import EncoderMismatchError, IdentityError, ModelNotFoundError, WeightsError
from idgen.identity import Feature, Identity
from idgen.stylegan.checkpoint import WPlusCard, write_wplus


@pytest.fixture(scope="module")
def e4e(tmp_path_factory: pytest.TempPathFactory) -> WPlusEncoder:
    return load_wplus(save_published(tmp_path_factory.mktemp("weights") / "tiny e4e@1.pt"))


@pytest.fixture(scope="module")
def psp(tmp_path_factory: pytest.TempPathFactory) -> WPlusEncoder:
    path = tmp_path_factory.mktemp("weights") / "tiny_psp.safetensors"
    write_wplus(path, tiny_model("psp"), WPlusCard(kind="psp", licence="for tests"))
    return load_wplus(path)


def test_it_says_what_it_is(e4e: WPlusEncoder, psp: WPlusEncoder) -> None:
    assert e4e.id == f"tiny_e4e_1@{e4e.sha256[:12]}"  # a name that an Identity can keep
    assert (e4e.licence, psp.licence) == (UNKNOWN_LICENCE, "for tests")
    for encoder in (e4e, psp):
        assert encoder.crop == CropSpec(size_px=256, template="ffhq", mean=127.5, std=127.5)
        assert (encoder.num_layers, encoder.style_dim) == (8, STYLE_DIM)
        assert torch.equal(encoder.latent_avg, tiny_model().latent_avg)


def test_codes_are_those_of_the_network_around_the_mean_code(e4e: WPlusEncoder) -> None:
    crops, model = torch.rand(2, 3, 256, 256), tiny_model()
    with torch.no_grad():
        expected = model.encoder(crops * 2 - 1) + model.latent_avg
    codes = e4e.encode(crops)
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=1e-4)
    assert (codes.dtype, codes.requires_grad) == (torch.float32, False)
    assert (codes[0] - codes[1]).abs().max() > 1e-4  # two faces, two codes


def test_a_batch_of_any_size_gives_the_same_codes(e4e: WPlusEncoder) -> None:
    crops = torch.rand(MAX_BATCH + 1, 3, 256, 256)
    codes = e4e.encode(crops.double())
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes[-1:], e4e.encode(crops[-1:]), atol=1e-5, rtol=1e-4)
    assert e4e.encode(crops[:0]).shape == (0, 8, STYLE_DIM)


def test_gradients_reach_the_pixels_and_leave_the_weights_alone(e4e: WPlusEncoder) -> None:
    crops = torch.rand(1, 3, 256, 256, requires_grad=True)
    codes = e4e.invert(crops)
    torch.testing.assert_close(codes.detach(), e4e.encode(crops.detach()), atol=1e-5, rtol=1e-4)
    e4e.decode(codes).sum().backward()
    assert crops.grad is not None
    assert (crops.grad != 0).float().mean() > 0.99
    assert all(p.grad is None for p in e4e.model.parameters())


def test_pictures_are_the_generators_in_0_to_1(psp: WPlusEncoder) -> None:
    codes = (psp.latent_avg + torch.randn(2, 8, STYLE_DIM)).requires_grad_()
    pictures = psp.decode(codes)
    assert pictures.shape == (2, 3, 32, 32)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    torch.testing.assert_close(pictures, (tiny_model().decoder(codes) / 2 + 0.5).clamp(0, 1))
    pictures.sum().backward()
    assert codes.grad is not None
    assert (codes.grad.abs().sum(dim=2) > 0).all()


def test_a_code_is_kept_in_an_identity_and_shown_again(psp: WPlusEncoder, tmp_path: Path) -> None:
    codes = psp.encode(torch.rand(1, 3, 256, 256))
    Identity((psp.feature(codes[0]),)).save(tmp_path / "who.safetensors")
    kept = Identity.load(tmp_path / "who.safetensors").feature("wplus", psp.id)
    assert torch.equal(psp.codes_of(kept), codes[0])
    assert torch.equal(psp.decode(kept), psp.decode(codes))
    with pytest.raises(IdentityError, match="not finite"):
        psp.feature(torch.full((8, STYLE_DIM), torch.nan))


def test_codes_of_another_generator_are_refused_by_both_names(e4e: WPlusEncoder, psp: WPlusEncoder) -> None:
    theirs = e4e.feature(e4e.latent_avg)
    with pytest.raises(EncoderMismatchError) as error:
        psp.decode(theirs)
    assert psp.id in str(error.value)
    assert e4e.id in str(error.value)
    with pytest.raises(EncoderMismatchError, match="got a face_vector of mini@0123456789ab"):
        psp.codes_of(Feature("mini@0123456789ab", "face_vector", torch.eye(4)[0].numpy()))
    for shape in ((1, 18, 512), (8, STYLE_DIM)):
        with pytest.raises(EncoderMismatchError, match=r"codes of shape \(B, 8, 8\), got"):
            psp.decode(torch.zeros(shape))
    with pytest.raises(EncoderMismatchError, match=r"has the shape \(8, 8\), got \(6, 8\)"):
        psp.feature(torch.zeros(6, STYLE_DIM))


def test_crops_of_another_shape_or_range_are_refused(psp: WPlusEncoder) -> None:
    for read in (psp.encode, psp.invert):
        with pytest.raises(
            ValueError, match=r"wants crops of shape \(B, 3, 256, 256\), got \(1, 3, 112, 112\)"
        ):
            read(torch.rand(1, 3, 112, 112))
        with pytest.raises(ValueError, match=r"crops must be in \[0, 1\], got -1 to -1"):
            read(-torch.ones(1, 3, 256, 256))
        with pytest.raises(ValueError, match=r"got nan to nan"):
            read(torch.full((1, 3, 256, 256), torch.nan))


def test_the_crop_is_the_files_own(tmp_path: Path) -> None:
    crop = {"size_px": 64, "template": "arcface", "mean": 0.0, "std": 255.0}
    path = tmp_path / "small.safetensors"
    write_wplus(path, tiny_model(), WPlusCard(kind="e4e", crop=crop))
    encoder, face = load_wplus(path), torch.rand(1, 3, 64, 64)
    assert encoder.crop == CropSpec(size_px=64, template="arcface", mean=0, std=255)
    model = tiny_model()
    torch.testing.assert_close(encoder.encode(face), model.invert(face).detach(), atol=1e-5, rtol=1e-4)
    for wrong, message in (
        (crop | {"template": "dlib"}, "the template 'dlib'; idgen cuts arcface and ffhq"),
        (crop | {"margin": 3}, "a crop that idgen does not know: .*margin"),
    ):
        write_wplus(path, tiny_model(), WPlusCard(kind="e4e", crop=wrong))
        with pytest.raises(WeightsError, match=message):
            load_wplus(path)


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no such file: nobody\.pt"):
        load_wplus("nobody.pt")
    torch.save(
        {"g_ema": tiny_generator().state_dict(), "latent_avg": torch.zeros(STYLE_DIM)}, tmp_path / "g.pt"
    )
    with pytest.raises(WeightsError, match="a generator and no encoder"):
        load_wplus(tmp_path / "g.pt")
    bare = save_published(tmp_path / "bare.pt", opts=None)
    with pytest.raises(WeightsError, match="does not say of which kind"):
        load_wplus(bare)
    assert type(load_wplus(str(bare), kind="psp").model.encoder).__name__ == "GradualStyleEncoder"
    assert isinstance(load_wplus(bare, kind="e4e").to("cpu").model, nn.Module)
