"""What an adapter's training reads beside each picture: captions, encoded once, and the same with an edit.

Shapes: N pictures, V wordings of a caption, B rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from idgen.diffusion.denoiser import TextStates, encode_texts
from idgen.objectives.editing import edit_captions
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.tuning.adapter import AdapterBatch

EDITS = 7  # names the stream of random numbers that edits are drawn from


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Encoded captions.

    Attributes:
        texts: all of them, each once; the first is the empty one.
        wordings: (N, V) rows of ``texts``.
        edited: (N, V) the same with an edit; None where no term wants any.
    """

    texts: TextStates
    wordings: Tensor
    edited: Tensor | None

    @classmethod
    def encoded(
        cls,
        pipe: IDPipeline | IDPipelineXL,
        captions: Sequence[Sequence[str]],
        edits: Sequence[str],
        *,
        seed: int,
    ) -> Self:
        """Encode V captions of each picture, and each with one of ``edits``, where there are any."""
        plain = [text for wordings in captions for text in wordings]
        edited = edit_captions(plain, edits, np.random.default_rng([seed, EDITS])) if edits else []
        texts = encode_texts(pipe, ["", *plain, *edited])
        shape = (len(captions), -1)
        return cls(
            texts=texts,
            wordings=texts.rows(plain).view(shape),
            edited=texts.rows(edited).view(shape) if edits else None,
        )

    def rows(self, batch: AdapterBatch) -> Tensor:
        """(B,) the caption of each row; the empty one where the text is left out."""
        return self.wordings[batch.rows, batch.wording] * batch.has_text

    def edit_rows(self, batch: AdapterBatch) -> tuple[Tensor, Tensor] | None:
        """(B,) captions and the same with an edit; also in rows from which the text is left out."""
        if self.edited is None:
            return None
        return self.wordings[batch.rows, batch.wording], self.edited[batch.rows, batch.wording]
