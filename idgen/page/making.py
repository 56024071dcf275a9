"""Pictures of people, made in a thread of their own: progress, previews, and an end to it at any step.

Shapes: R rows, each one picture.
"""

import functools
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from idgen import mini
from idgen.adapters.checkpoint import AdapterFile
from idgen.blocklist import Blocklist
from idgen.diffusion.latents import decode_latents
from idgen.errors import ConfigError
from idgen.identity import Identity
from idgen.metrics.consistency import Eye, Likeness, measure_likeness
from idgen.opening import Kit, choose_device, model_folder, open_kit, open_model
from idgen.page.jobs import Job, followed
from idgen.page.previews import clean_latents, small_webp
from idgen.page.turns import Place
from idgen.pipeline import Defaults, IDPipeline, IDPipelineXL
from idgen.pixels import to_pil
from idgen.provenance import Provenance, save_picture
from idgen.runs import model_sha256

MAX_PICTURES = 8  # of one click
MAX_PROMPT = 1000  # characters; a text encoder reads about 75 words of it
MAX_STEPS = 100
SEED_BOUND = 2**53  # up to which a browser counts exactly
PREVIEW_SHARE = 0.15  # of the time at most that goes into previews


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture that is asked for.

    Attributes:
        prompt: what it shows.
        identity: of whom.
        eyes: id of an encoder, or another name -> who measures the likeness, to whom.
        seed: of its noise.
        id_scale: strength of the identity.
        who: what the person is called under the picture; nothing where it is clear.
    """

    prompt: str
    identity: Identity
    eyes: Mapping[str, Eye]
    seed: int
    id_scale: float = 1.0
    who: str = ""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The pictures of one click, and what they have in common.

    Attributes:
        rows: one a picture.
        negative: what they should not show.
        id_start: part of the denoising from which on the identity has a say.
        steps: of the denoising.
        guidance: by the prompt.
        edit: of the people, "smile=+2"; None for none.
        edit_adapter: reads their codes; None likewise.

    Raises:
        ConfigError: if something is out of range.
    """

    rows: tuple[Row, ...]
    negative: str = ""
    id_start: float = 0.0
    steps: int
    guidance: float
    edit: str | None = None
    edit_adapter: AdapterFile | None = None

    def __post_init__(self) -> None:
        check("the number of pictures", len(self.rows), 1, MAX_PICTURES)
        check("the number of steps", self.steps, 1, MAX_STEPS)
        check("the guidance", self.guidance, 1, 20)
        check("the start", self.id_start, 0, 0.95)
        for row in self.rows:
            check("the strength", row.id_scale, 0, 3)
            check("the seed", row.seed, 0, SEED_BOUND)
            if not row.prompt.strip():
                raise ConfigError("there is no prompt yet: say in a few words what the picture shows")
        for words in (self.negative, *(row.prompt for row in self.rows)):
            if len(words) > MAX_PROMPT:
                raise ConfigError(f"a prompt holds at most {MAX_PROMPT} characters, this has {len(words)}")


def check(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number that is out of range.

    Raises:
        ConfigError: if it is, or is no number.
    """
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be between {low:g} and {high:g}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far it is.

    Attributes:
        step: of ``steps`` that are done.
        steps: of the denoising.
        seconds_left: about; None before the first step.
        previews: the pictures as they were when they were last looked at, as WebP; empty before that.
    """

    step: int
    steps: int
    seconds_left: float | None = None
    previews: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Made:
    """A picture on the disk, and what was measured on it."""

    path: Path
    row: Row
    likeness: Likeness
    is_blocked: bool = False


Pipe = IDPipeline | IDPipelineXL


class Workshop:
    """A model with its adapter, that makes one order after the other.

    Args:
        kit: what sees faces, and the adapter.
        opener: opens the model with the adapter on it, each time anew.
        folder: of the model.
        place: where models lie, of which one at a time is open; one of its own if not given.
    """

    def __init__(
        self, kit: Kit, opener: Callable[[], Pipe], *, folder: Path, place: Place | None = None
    ) -> None:
        self.kit, self.folder = kit, folder
        self.name = "mini" if folder == mini.BASE else folder.name  # as pictures say it
        self._opener, self._place = opener, place or Place()
        self._pipe: Pipe | None = None
        self._defaults: Defaults | None = None

    @functools.cached_property
    def model_hash(self) -> str:
        """Of the weights, as pictures say it."""
        return model_sha256(self.folder)

    @property
    def pipe(self) -> Pipe:
        """The model, while it is open.

        Raises:
            ValueError: if it is not.
        """
        if self._pipe is None:
            raise ValueError(f"the model {self.name} is not open; take a turn first")
        return self._pipe

    @property
    def is_open(self) -> bool:
        """Whether the model is in memory now."""
        return self._pipe is not None

    @property
    def defaults(self) -> Defaults:
        """Settings that the model likes best; it must have been open once."""
        if self._pipe is not None:
            self._defaults = self._pipe.defaults
        assert self._defaults is not None
        return self._defaults

    @contextmanager
    def turn(self, check: Callable[[], object] = lambda: None) -> Iterator[Pipe]:
        """A block in which the model is open and nobody else uses it.

        Args:
            check: called now and then while others are before; what it raises leaves the line.

        Raises:
            IdgenError: if the model cannot be opened; the one before it is open again then.
        """
        with self._place.turn(check):
            self._place.put_on(self)
            yield self.pipe

    def open_up(self) -> None:
        """Open the model, and make one small picture: the first one takes longest."""
        pipe = self._opener()
        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            pipe("a face", seed=0, num_inference_steps=1, guidance_scale=2.0)
        self._pipe, self._defaults = pipe, pipe.defaults

    def close(self) -> None:
        """Give the memory back."""
        self._pipe = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def make(self, order: Order, folder: Path) -> Iterator[Progress | list[Made]]:
        """Make the pictures in ``folder``; whoever stops asking stops the work after the step it is in.

        Returns:
            An iterator over how far it is, and at last the pictures.

        Raises:
            IdgenError: what the library raises.
        """

        def work(job: Job[Progress | list[Made]]) -> Progress | list[Made]:
            with self.turn(job.check), torch.no_grad(), self._editing(order):
                return self._measured(order, self._denoised(order, _Steps(job, order.steps)), folder)

        yield from followed(work, name="pictures")

    @contextmanager
    def _editing(self, order: Order) -> Iterator[None]:
        """A block in which the model reads codes that can be edited, where people are edited."""
        if order.edit_adapter is None:
            yield
            return
        self.pipe.load_adapter(order.edit_adapter)
        try:
            yield
        finally:
            self.pipe.unload_wplus_adapter()

    def _denoised(self, order: Order, job: "_Steps") -> list[tuple[Row, Image.Image, bool]]:
        latents: list[Tensor] = []  # before the step and after it

        def after_step(_: object, step: int, time: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            latents[:] = [*latents[-1:], tensors["latents"]]
            job.report(step + 1, lambda: self._previews(latents, step, int(time)))
            return tensors

        job.report(0, tuple)
        made = self.pipe(
            [row.prompt for row in order.rows],
            negative_prompt=[order.negative] * len(order.rows),
            identity=[row.identity for row in order.rows],
            blocklist=Blocklist(),  # whoever looked at the photos has checked
            seed=[row.seed for row in order.rows],
            id_scale=[row.id_scale for row in order.rows],
            id_start=order.id_start,
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            callback_on_step_end=after_step,
        )
        blocked = getattr(made, "nsfw_content_detected", None) or [False] * len(order.rows)
        return list(zip(order.rows, made.images, map(bool, blocked), strict=True))

    def _previews(self, latents: Sequence[Tensor], step: int, time: int) -> tuple[bytes, ...]:
        """What the pictures are going to show, as far as that can be seen by now, as small WebP pictures."""
        shown = latents[-1]
        if (
            self.pipe.vae.dtype == torch.float16
        ):  # SDXL's autoencoder overflows; diffusers casts it at the end
            return ()
        if isinstance(self.pipe.scheduler, DDIMScheduler):
            if len(latents) < 2:
                return ()
            then = int(self.pipe.scheduler.timesteps[step + 1])
            levels = self.pipe.scheduler.alphas_cumprod
            shown = clean_latents(latents[0], shown, float(levels[time]), float(levels[then]))
        return tuple(small_webp(to_pil(image)) for image in decode_latents(self.pipe.vae, shown))

    def _measured(
        self, order: Order, made: Sequence[tuple[Row, Image.Image, bool]], folder: Path
    ) -> list[Made]:
        done = []
        for number, (row, image, is_blocked) in enumerate(made, 1):
            likeness = measure_likeness(image, self.kit.detector, row.eyes)
            path = folder / f"idgen-{row.seed}-{number}.png"
            save_picture(image, path, self._provenance(order, row, likeness))
            done.append(Made(path=path, row=row, likeness=likeness, is_blocked=is_blocked))
        return done

    def _provenance(self, order: Order, row: Row, likeness: Likeness) -> Provenance:
        return Provenance(
            prompt=row.prompt,
            negative_prompt=order.negative,
            seed=row.seed,
            steps=order.steps,
            guidance_scale=order.guidance,
            id_scale=row.id_scale,
            model=self.name,
            model_hash=self.model_hash,
            adapter_hash=self.kit.adapter.sha256,
            encoder=self.kit.encoder.id,
            edit=order.edit,
            similarity={e.id: likeness.similarity[e.id] for e in self.kit.encoders if e.id in row.eyes},
        )


class _Steps:
    """Tells how far the denoising is, with previews where there is time for them."""

    def __init__(self, job: Job[Progress | list[Made]], steps: int) -> None:
        self._job, self.steps = job, steps
        self._began = time.monotonic()
        self._preview_at = 0.0
        self._previews: tuple[bytes, ...] = ()

    def report(self, step: int, draw: Callable[[], tuple[bytes, ...]]) -> None:
        self._job.check()
        now = time.monotonic()
        if 0 < step < self.steps and now >= self._preview_at and (previews := draw()):
            self._previews, then = previews, time.monotonic()
            self._preview_at = then + (then - now) / PREVIEW_SHARE
        left = None if step == 0 else (now - self._began) / step * (self.steps - step)
        self._job.tell(Progress(step=step, steps=self.steps, seconds_left=left, previews=self._previews))


def open_workshop(
    model: str = "mini",
    *,
    adapter: Path | None = None,
    encoder: str | None = None,
    judge: str | None = None,
    detector: str = "mini",
    device: str = "auto",
    precision: str = "auto",
    place: Place | None = None,
) -> Workshop:
    """What is named, found as `idgen generate` finds it; the model itself is opened at the first turn.

    Args:
        model: as in `model_folder`.
        adapter: as in `open_kit`, and so are encoder, judge and detector.
        encoder: likewise.
        judge: likewise.
        detector: likewise.
        device: as in `open_model`, and so is the precision.
        precision: likewise.
        place: as for `Workshop`.

    Raises:
        IdgenError: as `open_kit`.
    """
    device = choose_device(device)
    folder = model_folder(model)
    kit = open_kit(folder, adapter=adapter, encoder=encoder, judge=judge, detector=detector)

    def opener() -> Pipe:
        return open_model(folder, kit.adapter, device=device, precision=precision)

    return Workshop(kit, opener, folder=folder, place=place)
