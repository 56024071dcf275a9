"""Opens what training looks at faces with: from the names in a configuration to the parts."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from idgen.diffusion.denoiser import encode_texts, picture_px
from idgen.encoders.arcface import load_encoder
from idgen.faces.detect import Detector, load_detector
from idgen.faces.framing import Framing
from idgen.faces.scrfd import ScrfdDetector
from idgen.objectives.faces import FaceReader
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.portraits import Studio
from idgen.tuning.memory import activation_bytes

FramingName = Literal["auto", "aligned", "square"]


def open_studio(
    pipe: IDPipeline | IDPipelineXL,
    store: Path,
    *,
    model: str,
    encoder: str,
    detector: str,
    framing: FramingName,
    size_px: int | None,
) -> Studio:
    """Detector, encoder and framing for the pictures of a model.

    Args:
        pipe: the model.
        store: folder for what is computed once.
        model: its name: "mini" has framing "auto" aligned, since it knows nothing else; others square.
        encoder: as in `load_encoder`.
        detector: as in `load_detector`.
        framing: as in `Framing`.
        size_px: side of the pictures; what the model was made for where None.
    """
    kind = framing
    if kind == "auto":
        kind = "aligned" if model == "mini" else "square"
    return Studio(
        detector=load_detector(detector), encoder=load_encoder(encoder), vae=pipe.vae,
        framing=Framing(kind=kind, size_px=size_px or picture_px(pipe)), store=store,
    )  # fmt: skip


def face_reader(
    studio: Studio, encoder: str, device: torch.device, *, detect_in_prediction: bool
) -> FaceReader:
    """What sees the face in a predicted picture.

    Args:
        studio: as opened.
        encoder: its encoder's name: the torch form is opened here.
        device: that computes.
        detect_in_prediction: whether landmarks are looked for in the prediction.
    """
    detector: Detector | None = studio.detector if detect_in_prediction else None
    if isinstance(detector, ScrfdDetector):
        detector = detector.fitted(studio.framing.size_px)
    network = load_encoder(encoder).torch_encoder().to(device).requires_grad_(False)
    return FaceReader(vae=studio.vae, encoder=network, detector=detector)


def step_activations(
    pipe: IDPipeline | IDPipelineXL, unet: nn.Module, rows: int, side: int, prompt: str, *, faces: str | None
) -> int:
    """Bytes that one piece of a batch keeps for its backward pass.

    Args:
        pipe: the model.
        unet: its UNet, or what stands around it, as it will train.
        rows: of the piece.
        side: of the pictures, in pixels.
        prompt: any: its length decides nothing.
        faces: name of the encoder, where a term looks at faces.
    """
    latent = side // pipe.vae_scale_factor
    noisy = torch.zeros(rows, pipe.unet.config["in_channels"], latent, latent)
    texts = encode_texts(pipe, [prompt])
    told: dict[str, Tensor] | None = None
    if texts.pooled is not None:
        told = {"text_embeds": texts.pooled.expand(rows, -1), "time_ids": torch.zeros(rows, 6)}
    total = activation_bytes(
        unet, noisy, torch.zeros(rows, dtype=torch.long), added_cond_kwargs=told,
        encoder_hidden_states=texts.hidden.expand(rows, -1, -1),
    )  # fmt: skip
    if faces is not None:
        encoder = load_encoder(faces).torch_encoder().requires_grad_(False)
        crops = torch.zeros(rows, 3, encoder.crop.size_px, encoder.crop.size_px).requires_grad_()
        total += activation_bytes(pipe.vae.decoder, torch.zeros_like(noisy).requires_grad_())
        total += activation_bytes(encoder, crops)
    return total
