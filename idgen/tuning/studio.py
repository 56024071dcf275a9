"""Opens what training looks at faces with: from the names in a configuration to the parts."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from idgen import mini
from idgen.diffusion.denoiser import encode_texts, picture_px
from idgen.diffusion.latents import decode_latents
from idgen.diffusion.tiny_decoder import Decoder, load_decoder
from idgen.encoders.arcface import load_encoder
from idgen.errors import WeightsError
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
    studio: Studio, encoder: str, device: torch.device, *, detect_in_prediction: bool, decoder: str
) -> FaceReader:
    """What sees the face in a predicted picture.

    Args:
        studio: as opened.
        encoder: its encoder's name: the torch form is opened here.
        device: that computes.
        detect_in_prediction: whether landmarks are looked for in the prediction.
        decoder: "full" for the model's own, "mini" for the small one of mini, else as in `load_decoder`.

    Raises:
        ModelNotFoundError: if there is no such decoder.
        WeightsError: if it cannot be read, or is for other latents.
    """
    detector: Detector | None = studio.detector if detect_in_prediction else None
    if isinstance(detector, ScrfdDetector):
        detector = detector.fitted(studio.framing.size_px)
    network = load_encoder(encoder).torch_encoder().to(device).requires_grad_(False)
    vae = studio.vae if decoder == "full" else _small_decoder(studio, decoder)
    nn.Module.to(vae, device)  # the decorated method of diffusers hides its argument from type checkers
    return FaceReader(vae=vae, encoder=network, detector=detector)


def _small_decoder(studio: Studio, decoder: str) -> Decoder:
    small = load_decoder(mini.DECODER if decoder == "mini" else Path(decoder).expanduser())
    channels, side = studio.vae.config["latent_channels"], studio.framing.size_px
    factor = 2 ** (len(studio.vae.config["block_out_channels"]) - 1)
    latents = torch.zeros(1, channels, 2, 2)
    try:
        made = decode_latents(small, latents)
    except RuntimeError:  # what convolutions say of other widths
        made = latents
    if made.shape != (1, 3, 2 * factor, 2 * factor):
        raise WeightsError(
            f"the decoder {decoder} is not for this model, whose pictures of {side} pixels come from "
            f"{channels} x {side // factor} x {side // factor} latents; set decoder to full"
        )
    return small


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
