"""Does a face smile? A small network that travels with the package.

Shapes: B batch, S side of what the network reads.
"""

from functools import cache
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import interpolate

from idgen.errors import WeightsError
from idgen.mini import ROOT
from idgen.storage import sorted_header, write_bytes
from idgen.weights import read_tensors

EMBEDDED = ROOT / "smile" / "smile.safetensors"
SIDE_PX = 40
WIDTH = 16  # channels of the first layer
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601
FLATTEST = 1e-3  # standard deviation of a picture of which nothing can be said


class SmileNet(nn.Module):
    """Three convolutions on the grey face; its brightness and contrast do not count."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        last = SIDE_PX // 8
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * width * last * last, 1),
        )  # fmt: skip

    def forward(self, grey: Tensor) -> Tensor:
        """Grey crops (B, 1, S, S) -> (B,), the logarithm of the odds that the face smiles."""
        mean, spread = grey.mean(dim=(1, 2, 3), keepdim=True), grey.std(dim=(1, 2, 3), keepdim=True)
        return self.layers((grey - mean) / spread.clamp_min(FLATTEST))[:, 0]

    @torch.no_grad()
    def probability(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, 112, 112) RGB in [0, 1], in the ArcFace pose -> (B,) in [0, 1]."""
        return torch.sigmoid(self(small_grey(crops)))

    def save(self, path: Path) -> None:
        """Write the weights in halves, whole or not at all.

        Raises:
            StorageError: if they cannot be written.
        """
        halves = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        write_bytes(path, sorted_header(save(halves, {"idgen_smile": "1"})))


def small_grey(crops: Tensor) -> Tensor:
    """Crops (B, 3, H, W) as the network reads them: (B, 1, S, S)."""
    grey = (crops * LUMA.to(crops)).sum(dim=1, keepdim=True)
    return interpolate(grey, size=(SIDE_PX, SIDE_PX), mode="area")


@cache
def smile_net(path: Path = EMBEDDED) -> SmileNet:
    """The network of a file; by default the embedded one.

    Raises:
        WeightsError: if the file is missing, damaged, or something else.
    """
    tensors, _ = read_tensors(path)
    net = SmileNet()
    try:
        net.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path} holds no net of smiles: {str(error).splitlines()[-1].strip()}") from None
    return cast(SmileNet, net.eval().requires_grad_(False))
