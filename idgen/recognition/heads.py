"""The heads by name: what a recogniser is trained with, and thrown away afterwards."""

from functools import partial

from torch import nn

from idgen.recognition.in_batch import JointHead, UnifiedNegativesHead
from idgen.recognition.margins import AdaFaceHead, AngularHead, MarginHead, SoftmaxHead, SubcenterHead
from idgen.recognition.pairs import PairHead
from idgen.registry import Registry

heads: Registry[nn.Module] = Registry("head")
"""Each takes dim, num_people, margin and scale; a margin or scale that a head does not have is refused."""

heads.register("softmax")(SoftmaxHead)
heads.register("asoftmax")(AngularHead)
heads.register("cosface")(partial(MarginHead, kind="cosface", margin=0.35, scale=64.0))
heads.register("arcface")(partial(MarginHead, kind="arcface", margin=0.5, scale=64.0))
heads.register("subcenter_arcface")(SubcenterHead)
heads.register("adaface")(AdaFaceHead)
heads.register("unpg")(UnifiedNegativesHead)
heads.register("softmax_triplet")(JointHead)


def _pairs(dim: int, num_people: int, *, name: str, **settings: float) -> PairHead:
    """Pairs need to know neither the width nor the people."""
    return PairHead(name, **settings)


for _name in ("triplet", "multi_similarity", "supcon", "distance_margin"):
    heads.register(_name)(partial(_pairs, name=_name))


def build_head(
    name: str, dim: int, num_people: int, *, margin: float | None = None, scale: float | None = None
) -> nn.Module:
    """The head with its usual margin and scale where none is given.

    Args:
        name: one of `heads`.
        dim: width of the embeddings.
        num_people: how many are told apart.
        margin: in the head's own unit, see its class.
        scale: what cosines are multiplied by.

    Raises:
        UnknownNameError: for another name; the nearest one is shown.
        ConfigError: for a margin or scale out of range, or one that the head does not have.
    """
    given = {key: value for key, value in (("margin", margin), ("scale", scale)) if value is not None}
    return heads.build(name, dim=dim, num_people=num_people, **given)
