"""The layouts in which StyleGAN weights circulate, brought to one: flat keys, and what the file says of them.

A published generator is a pickle ``{"g_ema": {...}, "latent_avg": (C,)}`` of rosinality's
stylegan2-pytorch; an encoder with its generator is ``{"state_dict": {"encoder.*", "decoder.*"}, "latent_avg":
(L, C), "opts": {...}}``. What else such a pickle holds (discriminator, optimiser, options) serves to go on
with a training and is passed over. A safetensors has ``encoder.*``, ``decoder.*`` and ``latent_avg``, and
idgen's own says the rest in its metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from idgen.errors import WeightsError
from idgen.weights import PICKLES, flatten_tensors, read_pickle, read_tensors

FORMAT = "1"  # of idgen's own file
_PUBLISHED_KINDS = {"Encoder4Editing": "e4e", "GradualStyleEncoder": "psp"}  # opts["encoder_type"]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds, before anything is built of it.

    Attributes:
        state: ``encoder.*``, ``decoder.*``, ``latent_avg``: those that are there.
        said: ``kind``, ``crop``, ``licence`` and ``settings`` of a `WPlusCard`: those that the file gives.
        is_relative: whether the encoder's codes are added to the mean code.
    """

    state: dict[str, Tensor]
    said: dict[str, Any] = field(default_factory=dict)
    is_relative: bool = True

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose key begins so, without the beginning."""
        return {key.removeprefix(prefix): t for key, t in self.state.items() if key.startswith(prefix)}


def read_contents(path: Path) -> Contents:
    """Whatever of the layouts a file has.

    Raises:
        WeightsError: if it is damaged, holds code, or has none of them.
    """
    return _of_pickle(path) if path.suffix in PICKLES else _of_safetensors(path)


def _of_pickle(path: Path) -> Contents:
    data = read_pickle(path)
    if not isinstance(data, Mapping) or not {"g_ema", "state_dict"} & data.keys():
        what = f"a dict of {listed(data)}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
        raise WeightsError(
            f"{path} is neither a StyleGAN2 generator (a dict with g_ema) nor an e4e or pSp checkpoint (a "
            f"dict with state_dict): it holds {what}"
        )
    state: dict[str, Tensor] = {}
    part, prefix = ("state_dict", "") if "state_dict" in data else ("g_ema", "decoder")
    flatten_tensors(data[part], prefix, state, path.name)
    if data.get("latent_avg") is not None:
        flatten_tensors(data["latent_avg"], "latent_avg", state, path.name)
    options = data.get("opts")
    options = options if isinstance(options, Mapping) else {}
    published = options.get("encoder_type")
    if published is None:
        said = {}
    elif published in _PUBLISHED_KINDS:
        said = {"kind": _PUBLISHED_KINDS[published]}
    else:
        raise WeightsError(f"{path} holds a {published}; idgen reads {' and '.join(_PUBLISHED_KINDS)}")
    return Contents(state=state, said=said, is_relative=bool(options.get("start_from_latent_avg", True)))


def _of_safetensors(path: Path) -> Contents:
    state, metadata = read_tensors(path)
    if metadata.get("idgen_wplus", FORMAT) != FORMAT:
        raise WeightsError(
            f"{path} has the W+ format {metadata['idgen_wplus']}, this idgen reads {FORMAT}: "
            "`pip install --upgrade idgen`"
        )
    words = {"encoder_kind": "kind", "licence": "licence"}
    said: dict[str, Any] = {words[key]: metadata[key] for key in words if key in metadata}
    try:
        said |= {key: dict(json.loads(metadata[key])) for key in ("crop", "settings") if key in metadata}
    except (TypeError, ValueError) as error:  # no JSON, or no mapping
        raise WeightsError(f"{path} has damaged metadata: {error}") from None
    return Contents(state=state, said=said)


def listed(names: Mapping[Any, object]) -> str:
    """The first few keys, for a message."""
    first = [str(name) for name in names][:3]
    return ", ".join(first + ["..."] * (len(names) > len(first))) or "nothing"
