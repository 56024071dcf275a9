"""From latents to a face vector: the same vector as the measuring road, and gradients all the way."""

import numpy as np
import pytest
import skimage.data
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from idgen import mini
from idgen.diffusion.latents import decode_latents
from idgen.encoders.arcface import load_encoder
from idgen.encoders.onnx_torch import TorchEncoder, torch_encoder
from idgen.faces.detect import load_detector
from idgen.faces.photo import choose_face, face_crop, find_faces
from idgen.faces.scrfd import ScrfdDetector
from idgen.mini import FACES
from idgen.objectives.faces import FaceReader, aligned_crops
from idgen.pixels import to_tensor

NOWHERE = torch.full((1, 5, 2), torch.nan)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(mini.BASE / "vae").requires_grad_(False).eval()


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    return torch_encoder(mini.FACES / "rec_mini.onnx")


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """The astronaut's head, at mini's size."""
    return (
        Image.fromarray(skimage.data.astronaut())
        .crop((160, 20, 300, 160))
        .resize((64, 64), Image.Resampling.BOX)
    )


def latents_of(vae: AutoencoderKL, *pictures: Image.Image) -> Tensor:
    pixels = torch.stack([to_tensor(picture) for picture in pictures]) * 2 - 1
    return vae.encode(pixels).latent_dist.mean * vae.config["scaling_factor"]


@pytest.mark.parametrize("size_px", [64, 256, 512])
def test_the_crop_is_the_one_that_measures(size_px: int) -> None:
    """Large faces are averaged in blocks first, in both."""
    picture = Image.fromarray(skimage.data.astronaut()).crop((160, 20, 300, 160)).resize((size_px, size_px))
    face = choose_face(find_faces(picture, load_detector("mini")), "largest", source="astronaut")
    crop = aligned_crops(
        to_tensor(picture)[None], torch.from_numpy(np.asarray(face.landmarks))[None].float(), 112
    )
    assert torch.allclose(crop[0], face_crop(picture, face), atol=4e-3)  # 8 bits after the blocks


def test_the_vector_is_that_of_the_decoded_picture(
    vae: AutoencoderKL, encoder: TorchEncoder, portrait: Image.Image
) -> None:
    detector = ScrfdDetector(FACES / "det_mini.onnx").fitted(64)
    latents = latents_of(vae, portrait)
    seen = FaceReader(vae=vae, encoder=encoder, detector=detector).read(latents, NOWHERE)
    assert seen.rows.tolist() == [0]
    assert seen.is_detected.tolist() == [True]
    shown = decode_latents(vae, latents)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    decoded = Image.fromarray(shown)
    (face,) = detector.detect(np.asarray(decoded))
    measured = load_encoder("mini").encode(face_crop(decoded, face)[None]).unit
    assert (seen.id_embedding @ measured.T).item() > 0.999  # 8 bits a colour are the difference


def test_gradients_reach_the_latents_and_lead_to_the_person(
    vae: AutoencoderKL, encoder: TorchEncoder, portrait: Image.Image
) -> None:
    """Steps along the gradient of a few latents make the face more like somebody else's."""
    reader = FaceReader(vae=vae, encoder=encoder, detector=load_detector("mini"))
    latents = latents_of(vae, portrait).requires_grad_()
    somebody = torch.nn.functional.normalize(torch.randn(1, 128), dim=1)
    before = (reader.read(latents, NOWHERE).id_embedding @ somebody.T).sum()
    (gradient,) = torch.autograd.grad(before, latents)
    assert gradient.isfinite().all()
    with torch.no_grad():
        after = reader.read(latents + 2.0 * gradient / gradient.norm(), NOWHERE).id_embedding @ somebody.T
    assert after.item() > before.item() + 0.01


def test_a_face_that_is_not_found_is_looked_for_where_the_training_picture_has_it(
    vae: AutoencoderKL, encoder: TorchEncoder, portrait: Image.Image
) -> None:
    detector = load_detector("mini")
    grey = Image.new("RGB", (64, 64), (127, 127, 127))
    face = choose_face(find_faces(portrait, detector), "largest", source="portrait")
    known = torch.from_numpy(np.asarray(face.landmarks))[None].float()
    latents = latents_of(vae, portrait, grey, grey)
    landmarks = torch.cat([NOWHERE, known, NOWHERE])
    seen = FaceReader(vae=vae, encoder=encoder, detector=detector).read(latents, landmarks)
    assert seen.rows.tolist() == [0, 1]
    assert seen.is_detected.tolist() == [True, False]
    assert seen.id_embedding.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_without_a_detector_the_training_pictures_say_where(
    vae: AutoencoderKL, encoder: TorchEncoder, portrait: Image.Image
) -> None:
    reader = FaceReader(vae=vae, encoder=encoder)
    seen = reader.read(latents_of(vae, portrait), NOWHERE)
    assert seen.rows.tolist() == []
    assert seen.id_embedding.shape[0] == 0
