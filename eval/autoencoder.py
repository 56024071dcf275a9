r"""How much of a face survives the autoencoder: the ceiling of every picture that a model on it can make.

    python eval/autoencoder.py --faces $IDGEN_FACES/faces_train.parquet --held-out \
        --judge $IDGEN_WEIGHTS/second_recognizer.onnx

L1 in the pixels, and the judge's similarity of the portrait at full size to the portrait at the model's size,
before and after encoding and decoding: what the size costs, and what the autoencoder costs.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn.functional import interpolate

from idgen.config import Parser
from idgen.data.images import ARCFACE_MARGIN, load_faces, split_people
from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import FaceEncoder
from idgen.metrics.bootstrap import interval_over_people
from idgen.mini import BASE

PORTRAIT_PX = 128


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode to the mean of the latents and decode: (N, 3, S, S) in [0, 1] in and out."""
    decoded = []
    for part in images.split(32):
        (posterior,) = vae.encode(part * 2 - 1, return_dict=False)
        decoded.append(vae.decode(posterior.mean, return_dict=False)[0])  # pyright: ignore[reportArgumentType]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def embed_portraits(judge: FaceEncoder, images: Tensor) -> np.ndarray:
    """Face vectors (N, D) of portraits of any size, (N, 3, S, S) in [0, 1], enlarged to 128 pixels."""
    portraits = interpolate(images, size=(PORTRAIT_PX, PORTRAIT_PX), mode="bicubic", align_corners=False)
    inner = slice(ARCFACE_MARGIN, PORTRAIT_PX - ARCFACE_MARGIN)
    return judge.encode(portraits.clamp(0, 1)[:, :, inner, inner]).unit.numpy()


def main(argv: Sequence[str] | None = None) -> int:
    """One portrait a person, three numbers, their intervals over people."""
    parser = Parser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of portraits")
    parser.add_argument("--held-out", action="store_true", help="the tenth of the people that is set aside")
    parser.add_argument("--judge", required=True, help="recogniser that judges")
    parser.add_argument("--vae", type=Path, default=BASE / "vae", help="diffusers folder (mini's)")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    table = load_faces(options.faces)
    table = split_people(table)[1] if options.held_out else table
    people = table.people()
    names = np.random.default_rng(options.seed).permutation(sorted(people))[: options.people]
    chosen = table.subset([people[name][0] for name in names])
    vae, judge = AutoencoderKL.from_pretrained(options.vae).float().eval(), load_encoder(options.judge)

    small = chosen.pictures(vae.config["sample_size"]).float() / 255
    decoded = reconstruct(vae, small)
    whole = judge.encode(chosen.crops(np.arange(len(chosen)))).unit.numpy()
    numbers = {
        "L1 of the pixels in [-1, 1]": 2 * (decoded - small).abs().mean(dim=(1, 2, 3)).numpy(),
        "similarity, full size to model's size": (whole * embed_portraits(judge, small)).sum(axis=1),
        "similarity, full size to decoded": (whole * embed_portraits(judge, decoded)).sum(axis=1),
    }
    report = {
        name: {"mean": float(values.mean()), "interval": interval_over_people(values)}
        for name, values in numbers.items()
    }
    for name, value in report.items():
        low, high = value["interval"]
        print(f"{name:38s} {value['mean']:6.3f}   [{low:.3f}, {high:.3f}]")
    if options.out:
        options.out.write_text(json.dumps({"people": len(chosen), **report}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
