"""From a face vector to the tokens that cross-attention layers look at.

Shapes: B batch, n references of a person, D width of the face vector, N tokens a reference,
C text width of the UNet.
"""

from torch import Tensor, nn


class FaceIDProjection(nn.Module):
    """The projector of IP-Adapter FaceID (released models of Ye et al. 2023, https://arxiv.org/abs/2308.06721).

    ``tokens = LayerNorm(W2 GELU(W1 e + b1) + b2)``, the second layer making all N tokens at once. The
    parameters are named as in published files (``proj.0``, ``proj.2``, ``norm``); diffusers renames them on
    loading and computes the same. The unconditional tokens of guidance are this projector applied to the
    zero vector, as published.

    Args:
        id_dim: D; 512 for insightface recognisers.
        cross_dim: C; 768 for SD 1.x, 1024 for SD 2.x, 2048 for SDXL.
        num_tokens: N; 4 in FaceID, 16 in FaceID-Portrait.
        hidden_dim: width of the hidden layer, a multiple of D (diffusers reads no other); twice D where None.
    """

    def __init__(
        self, id_dim: int, cross_dim: int, num_tokens: int = 4, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        hidden_dim = 2 * id_dim if hidden_dim is None else hidden_dim
        self.id_dim, self.cross_dim, self.num_tokens = id_dim, cross_dim, num_tokens
        self.proj = nn.Sequential(
            nn.Linear(id_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, cross_dim * num_tokens)
        )
        self.norm = nn.LayerNorm(cross_dim)

    def forward(self, id_embedding: Tensor) -> Tensor:
        """Project face vectors (..., D) to tokens (..., N, C)."""
        tokens = self.proj(id_embedding)
        return self.norm(tokens.unflatten(-1, (self.num_tokens, self.cross_dim)))
