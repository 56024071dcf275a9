"""CLIP on this disk: pictures and texts in one space.

Shapes: B pictures or texts, D width of the common space.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from idgen.encoders.features import folder_digest
from idgen.encoders.sight import Eye, Sight
from idgen.errors import ModelNotFoundError, WeightsError


class ClipModel:
    """A folder as transformers keeps CLIP: model, tokenizer, image processor. Nothing is downloaded.

    Raises:
        ModelNotFoundError: if there is no such folder.
        WeightsError: if transformers cannot open it, or it is not CLIP.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(f"no CLIP at {folder}: there is no config.json")
        try:
            self._model: Any = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(
                f"transformers cannot open CLIP at {folder}: {str(error).splitlines()[0]}"
            ) from None
        name = f"{folder.resolve().name.replace('@', '_')}@{folder_digest(folder)}"
        self.eye = Eye(id=name, dim=self._model.config.projection_dim, see=self._see, needs_face=False)

    def _see(self, sights: Sequence[Sight]) -> np.ndarray:
        return self.embed_pictures([sight.image for sight in sights])

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(B, D) float32, as the network gives them."""
        values = self._processor(images=list(pictures), return_tensors="pt")
        pooled = self._model.vision_model(pixel_values=values["pixel_values"]).pooler_output
        return self._model.visual_projection(pooled).float().numpy()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(B, D) float32; a text longer than the model's is cut."""
        values = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        pooled = self._model.text_model(
            input_ids=values["input_ids"], attention_mask=values["attention_mask"]
        ).pooler_output
        return self._model.text_projection(pooled).float().numpy()
