"""The adapter that a training begins with: the model's own, a file's, or a new one, of either kind."""

from dataclasses import dataclass
from pathlib import Path

import torch

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import AdapterFile, read_adapter, read_face_adapter, write_adapter
from idgen.adapters.install import IDAdapter
from idgen.adapters.wplus import WPlusAdapter
from idgen.encoders.base import FaceEncoder
from idgen.encoders.wplus import WPlusEncoder
from idgen.errors import WeightsError
from idgen.pipeline import IDPipeline, IDPipelineXL


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What an adapter's training begins with, and what its file will say.

    Attributes:
        start: a file, "new", or "auto": the model's own where it has one.
        encoder: whose features the adapter reads.
        base_model: name of the model.
        training_run: what makes it, in words.
        licence: of the result; where None that of the adapter it began with.
        num_tokens: of a new adapter of face vectors.
        seed: of a new adapter.
    """

    start: str
    encoder: FaceEncoder | WPlusEncoder
    base_model: str
    training_run: str
    licence: str | None
    num_tokens: int
    seed: int

    @property
    def file_name(self) -> str:
        """What the result is called."""
        return "wplus.safetensors" if isinstance(self.encoder, WPlusEncoder) else "faceid.safetensors"

    def card(self, adapter: IDAdapter | WPlusAdapter, licence: str) -> AdapterCard:
        """What the file says of itself; ``licence`` holds where nobody named one."""
        is_wplus = isinstance(adapter, WPlusAdapter)
        return AdapterCard(
            base_model=self.base_model, encoder=self.encoder.id, num_tokens=adapter.num_tokens,
            licence=self.licence or licence, training_run=self.training_run,
            feature="wplus" if is_wplus else "face_vector", style_dim=adapter.style_dim if is_wplus else None,
        )  # fmt: skip

    def open(self, pipe: IDPipeline | IDPipelineXL, folder: Path) -> AdapterFile[IDAdapter | WPlusAdapter]:
        """The adapter to train, on the model; an adapter of face vectors gives way to one of W+ codes.

        Args:
            pipe: the model.
            folder: where a new adapter is kept.

        Raises:
            WeightsError: if it does not fit the model, or is of the other kind.
            EncoderMismatchError: if it reads features of another encoder.
        """
        wants_codes = isinstance(self.encoder, WPlusEncoder)
        if wants_codes:
            pipe.unload_adapter()
        own = pipe.wplus_adapter if wants_codes else pipe.adapter
        if self.start not in ("auto", "new"):
            read = read_adapter if wants_codes else read_face_adapter
            file = read(Path(self.start), encoder=self.encoder.id)
            if wants_codes and file.card.feature != "wplus":
                raise WeightsError(f"start: {self.start} is no W+ adapter; kind: face trains it")
            pipe.load_adapter(file)
        elif self.start == "new" or own is None:
            pipe.load_adapter(self._written(self._fresh(pipe), folder / "start" / self.file_name))
        else:
            read_adapter(own.path, encoder=self.encoder.id)  # refuses another encoder
        begun = pipe.wplus_adapter if wants_codes else pipe.adapter
        assert begun is not None
        return begun

    def _fresh(self, pipe: IDPipeline | IDPipelineXL) -> IDAdapter | WPlusAdapter:
        encoder = self.encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if isinstance(encoder, WPlusEncoder):
                return WPlusAdapter.for_unet(
                    pipe.unet, num_layers=encoder.num_layers, style_dim=encoder.style_dim
                )
            return IDAdapter.for_unet(pipe.unet, id_dim=encoder.dim, num_tokens=self.num_tokens)

    def _written(self, fresh: IDAdapter | WPlusAdapter, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        unknown = "research-only" if self.base_model == "mini" else "unknown: ask whoever trained it"
        write_adapter(path, fresh, self.card(fresh, unknown))
        return path
