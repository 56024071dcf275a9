"""An encoder and the generator whose codes it speaks: what one file of weights holds.

Shapes: B batch, L layers of the generator, C width of a code, S side of its pictures.
"""

from torch import Tensor, nn

from idgen.errors import WeightsError
from idgen.stylegan.generator import CodeGenerator


class CodeEncoder(nn.Module):
    """What reads faces as codes: pictures in [-1, 1] to (B, L, C), as offsets from the generator's mean code.

    Attributes:
        num_layers: L.
        style_dim: C.
    """

    num_layers: int
    style_dim: int


def check_mean_code(latent_avg: Tensor, generator: CodeGenerator) -> None:
    """There is one mean code for each layer.

    Raises:
        WeightsError: if not.
    """
    wanted = (generator.num_layers, generator.style_dim)
    if tuple(latent_avg.shape) != wanted:
        raise WeightsError(f"latent_avg is {tuple(latent_avg.shape)}, the generator needs {wanted}")


class WPlusModel(nn.Module):
    """An encoder, the generator whose codes it speaks, and the mean code.

    Its state dict has the keys of the files: ``encoder.*``, ``decoder.*`` and ``latent_avg``.

    Args:
        encoder: makes offsets from the mean code.
        decoder: the generator.
        latent_avg: (L, C), mean of the generator's codes.

    Raises:
        WeightsError: if the codes are not of the shape that the generator reads.
    """

    latent_avg: Tensor

    def __init__(self, encoder: CodeEncoder, decoder: CodeGenerator, latent_avg: Tensor) -> None:
        super().__init__()
        made, read = (encoder.num_layers, encoder.style_dim), (decoder.num_layers, decoder.style_dim)
        if made != read:
            raise WeightsError(
                f"the encoder makes codes of shape {made}, the generator of {decoder.size_px} pixels reads "
                f"{read}: they do not belong together"
            )
        check_mean_code(latent_avg, decoder)
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("latent_avg", latent_avg)

    def invert(self, pixel_values: Tensor) -> Tensor:
        """Codes (B, L, C) of crops as the encoder wants them."""
        return self.encoder(pixel_values) + self.latent_avg

    def show(self, codes: Tensor) -> Tensor:
        """The generator's pictures of codes (B, L, C): (B, 3, S, S) in about [-1, 1]."""
        return self.decoder(codes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Crops to the generator's pictures of them, (B, 3, S, S) in about [-1, 1]."""
        return self.show(self.invert(pixel_values))

    def weights(self) -> dict[str, Tensor]:
        """What the file holds."""
        return self.state_dict()
