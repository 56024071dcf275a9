"""What kind of adapter a file holds, told by its keys alone (they were counted on the published files)."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from torch import Tensor

from idgen.errors import WeightsError

Family: TypeAlias = Literal["faceid", "wplus"]

FAMILY_NAMES: dict[Family, str] = {"faceid": "IP-Adapter FaceID file", "wplus": "W+ adapter"}
INSTANTID_WIDTH = 512  # its resampler reads a face vector; the resampler of IP-Adapter Plus reads CLIP's 1280


def check_family(state: Mapping[str, Tensor], source: str) -> Family:
    """Let IP-Adapter FaceID files and W+ adapters pass and refuse every other family by its name.

    Args:
        state: tensors under flat keys, as in a safetensors file.
        source: the file, for the message.

    Returns:
        Which of the two it is.

    Raises:
        WeightsError: if the file holds anything else.
    """
    if any(key.startswith(("w_proj.", "wplus_adapter.")) for key in state):
        return "wplus"
    family = _other_family(state)
    if family is not None:
        raise WeightsError(
            f"{source} is {family}; idgen reads IP-Adapter FaceID files (also FaceID-Portrait): "
            "`image_proj.proj.0`, `image_proj.proj.2`, `image_proj.norm` and `ip_adapter.*`; "
            "and W+ adapters: `w_proj.*` and `wplus_adapter.*`"
        )
    return "faceid"


def _other_family(state: Mapping[str, Tensor]) -> str | None:
    """The family in words, or None for FaceID; tested in the order in which the marks are unambiguous."""
    if any(key.startswith("w_proj_model.") for key in state):
        return (
            "a raw checkpoint of the W+ adapter's training script (rename `w_proj_model`, `adapter_modules`)"
        )
    if any(key.startswith(("image_proj_model.", "adapter_modules.")) for key in state):
        return (
            "a raw checkpoint of IP-Adapter's training script (rename `image_proj_model`, `adapter_modules`)"
        )
    if any("lora_unet" in key or key.startswith(("unet.", "base_model.")) for key in state):
        return "a LoRA and not an adapter (pipe.load_lora_weights loads those)"
    plus = "IP-Adapter FaceID-Plus or PlusV2, which reads CLIP features of the face as well"
    marks = {
        "image_proj.proj.weight": "the base IP-Adapter, which reads CLIP image embeddings",
        "image_proj.proj.3.weight": "IP-Adapter full-face, which reads CLIP image embeddings",
        "image_proj.perceiver_resampler.proj_in.weight": plus,
    }
    for mark, family in marks.items():
        if mark in state:
            return family
    if "image_proj.latents" in state:
        proj_in = state.get("image_proj.proj_in.weight")
        if proj_in is not None and proj_in.shape[-1] == INSTANTID_WIDTH:
            return "the resampler of InstantID, which needs its ControlNet too"
        return "IP-Adapter Plus, which reads CLIP image features"
    if "image_proj.norm.weight" not in state or "image_proj.proj.0.weight" not in state:
        shown = ", ".join(sorted(state)[:3]) or "nothing"
        return f"no identity adapter that idgen knows (it holds {shown}{', ...' if len(state) > 3 else ''})"
    return None
