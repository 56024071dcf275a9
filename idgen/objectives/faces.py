"""From predicted latents to a face vector, with gradients all the way: decoder, aligned crop, torch encoder.

Shapes: B rows, C channels, h and w of the latents, H and W of the picture, F <= B rows with a face, D width.
"""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn.functional import avg_pool2d

from idgen.diffusion.latents import decode_latents
from idgen.diffusion.tiny_decoder import Decoder
from idgen.encoders.onnx_torch import TorchEncoder
from idgen.faces.align import ARCFACE_TEMPLATE, TEMPLATE_SIZE_PX, align_faces, similarity_matrix
from idgen.faces.detect import Detector
from idgen.faces.photo import MIN_FACE_PX
from idgen.pixels import to_array, to_pil


def aligned_crops(image: Tensor, landmarks: Tensor, size_px: int) -> Tensor:
    """Faces in the ArcFace pose, as `idgen.faces.photo.face_crop` makes them, with gradients.

    Where a face is more than twice the size of the crop, whole blocks of pixels are averaged first, so that
    every pixel counts.

    Args:
        image: (F, 3, H, W).
        landmarks: (F, 5, 2) in pixels of the image.
        size_px: side of the crop.

    Returns:
        (F, 3, size_px, size_px).
    """
    template = ARCFACE_TEMPLATE.to(landmarks) * (size_px / TEMPLATE_SIZE_PX)
    scale = torch.linalg.det(similarity_matrix(landmarks, template)[:, :, :2]).sqrt()
    crops = []
    for picture, points, shrink in zip(image, landmarks, (1 / scale).tolist(), strict=True):
        blocks = max(1, int(shrink))
        small = avg_pool2d(picture[None], blocks, ceil_mode=True) if blocks > 1 else picture[None]
        # the centre of block i lies at pixel blocks * i + (blocks - 1) / 2
        crops.append(align_faces(small, (points[None] - (blocks - 1) / 2) / blocks, size_px))
    return torch.cat(crops)


@dataclass(frozen=True, kw_only=True)
class PredictedFaces:
    """Face vectors of the rows that show a face.

    Attributes:
        id_embedding: (F, D) of unit length, with gradients to the latents.
        rows: (F,) which rows they are.
        is_detected: (F,) whether the landmarks were found in the prediction itself; else the training
        picture's.
        crops: (F, 3, S, S) what the encoder saw, in [0, 1] or a little beyond, with gradients.
        images: (B, 3, H, W) the pictures of all rows, without gradients.
    """

    id_embedding: Tensor
    rows: Tensor
    is_detected: Tensor
    crops: Tensor
    images: Tensor


@dataclass(frozen=True, kw_only=True)
class FaceReader:
    """What sees the person in predicted latents.

    Other than the published programs, which cut out the detector's box and resize it, it brings the face to
    the encoder's template (`idgen.faces.align`), as every measurement does.

    Attributes:
        vae: frozen; its decoder is in the way of the gradients. A small one costs a fraction.
        encoder: the torch twin of the encoder that the targets come from, frozen.
        detector: looks once at each prediction, without the ladder of attempts that photos get: most
            predictions that show no face at first sight are noise. None takes the training pictures'
            landmarks and is faster.
    """

    vae: AutoencoderKL | Decoder
    encoder: TorchEncoder
    detector: Detector | None = None

    def read(self, x0: Tensor, landmarks: Tensor) -> PredictedFaces:
        """Decode, align, embed.

        Args:
            x0: (B, C, h, w) predicted clean latents.
            landmarks: (B, 5, 2) of the training pictures, in pixels of the decoded picture: where the face is
                expected if it is not found in the prediction. NaN where that is not known either.

        Returns:
            The rows with a face; the caller counts those that are missing.
        """
        # where the identity was left out of all rows there is nothing to decode
        image = decode_latents(self.vae, x0) if len(x0) else x0.new_zeros(0, 3, 1, 1, dtype=torch.float32)
        points, is_detected = landmarks.clone(), torch.zeros(len(x0), dtype=torch.bool)
        if self.detector is not None:
            for row, picture in enumerate(image.detach()):
                faces = self.detector.detect(to_array(to_pil(picture.clamp(0, 1))))
                large = [face for face in faces if face.size_px >= MIN_FACE_PX]
                if not large:
                    continue
                face = max(large, key=lambda face: face.size_px)
                points[row] = torch.from_numpy(face.landmarks).to(points)
                is_detected[row] = True
        rows = points.isfinite().all(dim=(1, 2)).nonzero().flatten()
        if not len(rows):
            nothing, size = x0.new_zeros((0, 1), dtype=torch.float32), self.encoder.crop.size_px
            return PredictedFaces(
                id_embedding=nothing, rows=rows, is_detected=is_detected[rows.cpu()],
                crops=image.new_zeros(0, 3, size, size), images=image.detach(),
            )  # fmt: skip
        crops = aligned_crops(image[rows], points[rows], self.encoder.crop.size_px)
        return PredictedFaces(
            id_embedding=self.encoder(crops), rows=rows, is_detected=is_detected[rows.cpu()], crops=crops,
            images=image.detach(),
        )  # fmt: skip
